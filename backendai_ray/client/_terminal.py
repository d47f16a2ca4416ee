"""A terminal in a session, over a WebSocket."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from backendai_ray.client._problems import raise_for_status
from backendai_ray.core.errors import BackendError, Unavailable

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from backendai_ray.client._transport import Transport


class AsyncTerminal:
    """A shell in a session: write what is typed, iterate over what it shows.

    The iteration ends when the shell does.
    """

    def __init__(self, transport: Transport, path: str, *, rows: int = 24, cols: int = 80) -> None:
        self._transport = transport
        self._path = path
        self._size = (rows, cols)
        self._socket: ClientConnection | None = None

    async def open(self) -> AsyncTerminal:
        """Connect and tell the terminal's size."""
        from websockets.asyncio.client import connect  # late: only terminals need it
        from websockets.exceptions import InvalidStatus, WebSocketException

        url, headers = self._transport.websocket_request(self._path)
        try:
            self._socket = await connect(url, additional_headers=headers, max_size=None, open_timeout=15, proxy=None)
        except InvalidStatus as exc:
            raise_for_status(exc.response.status_code, exc.response.headers, bytes(exc.response.body or b""))
            raise BackendError(f"the terminal was refused: {exc}") from exc
        except (OSError, TimeoutError, WebSocketException) as exc:
            raise Unavailable(f"the terminal cannot be reached: {exc}") from exc
        await self.resize(*self._size)
        return self

    async def write(self, data: bytes) -> None:
        """Type."""
        await self._send({"type": "stdin", "chars": base64.b64encode(data).decode()})

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its size in characters."""
        self._size = (rows, cols)
        await self._send({"type": "resize", "rows": rows, "cols": cols})

    async def read(self) -> bytes:
        """Return the next piece of what it shows; empty when the shell has ended.

        Raises:
            BackendError: the server says that something went wrong.
        """
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = json.loads(await self._opened().recv())
            except ConnectionClosed as exc:
                if exc.rcvd is None:
                    raise Unavailable("the connection to the terminal broke") from exc
                return b""
            if message.get("type") == "out":
                data = base64.b64decode(message.get("data", ""))
                if data:
                    return data
            elif message.get("type") == "error":
                raise BackendError(str(message.get("data") or message.get("reason") or "the terminal failed"))

    async def close(self) -> None:
        """Leave the terminal."""
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def __aenter__(self) -> AsyncTerminal:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, message: dict[str, object]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._opened().send(json.dumps(message))
        except ConnectionClosed as exc:
            raise Unavailable("the terminal is closed") from exc

    def _opened(self) -> ClientConnection:
        if self._socket is None:
            raise Unavailable("the terminal is not open")
        return self._socket

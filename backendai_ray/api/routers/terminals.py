"""Terminals over a WebSocket, in the official client's frames.

From the client: ``stdin`` (``chars``: base64), ``resize`` (``rows``, ``cols``), ``ping``, ``restart``. To the client:
``out`` (``data``: base64), ``pong``, ``error`` (``reason``, ``data``), ``exit``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any, TypeVar

import msgspec
import structlog
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from actors.contracts import AgentContract, Route
from backendai_ray.api.answers import encode
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import Caller, caller_of
from backendai_ray.api.routers.names import SessionName
from backendai_ray.core.errors import BackendError, BadRequest, InternalError, InvalidParameter

log = structlog.get_logger()
router = APIRouter()

T = TypeVar("T")
_READ_WAIT_S = 10.0
_ROWS, _COLS = 24, 80
_MAX_SIDE = 4096
_PTY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@router.websocket("/stream/session/{name}/pty")
async def terminal(websocket: WebSocket, context: ContextDep, name: SessionName) -> None:
    """Open a terminal in the session.

    With `ptyId` in the query the terminal outlives the connection: connect again with the same id, and with
    `afterSeq` (the `seq` of the last `out` that arrived), to go on with it.
    """
    caller = caller_of(websocket, websocket.query_params.get("owner_access_key"))  # type: ignore[arg-type]
    chosen_id = websocket.query_params.get("ptyId")
    if chosen_id is not None and not _PTY_ID.fullmatch(chosen_id):
        raise InvalidParameter("ptyId: use 1 to 64 letters, digits, '_' or '-'", field="ptyId")
    after_seq = _number(websocket.query_params.get("afterSeq", "0"), "afterSeq", 0, 2**53)
    pty = _Terminal(context, caller, name, websocket, chosen_id, after_seq)
    await pty.open()
    await websocket.accept()
    try:
        await pty.serve()
        await websocket.close()
    except WebSocketDisconnect:
        pass
    except BackendError as exc:
        await pty.send_error(exc, close=True)
    except Exception:
        log.exception("terminal.unexpected_error", session=name)
        await pty.send_error(InternalError(), close=True)
    finally:
        await asyncio.shield(asyncio.create_task(pty.leave()))


class _Terminal:
    """One connection to one terminal."""

    def __init__(
        self,
        context: Context,
        caller: Caller,
        name: str,
        websocket: WebSocket,
        chosen_id: str | None,
        after_seq: int,
    ) -> None:
        self._context = context
        self._caller = caller
        self._name = name
        self._websocket = websocket
        self._is_kept = chosen_id is not None
        self._id = chosen_id or token_hex(8)
        self._seq = after_seq
        self._rows, self._cols = _ROWS, _COLS

    async def open(self) -> None:
        """Open the terminal, or attach to it."""
        await self._call(lambda agent, route: agent.open_pty(route, rows=self._rows, cols=self._cols, pty_id=self._id))

    async def serve(self) -> None:
        """Carry bytes both ways until either side is done."""
        tasks = [asyncio.create_task(self._carry_out()), asyncio.create_task(self._carry_in())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Close the terminal, unless the client means to come back."""
        if self._is_kept:
            return
        try:
            await self._call(lambda agent, route: agent.close_pty(route, self._id), repeat=False)
        except BackendError as exc:
            log.debug("terminal.not_closed", error=exc.code)

    async def send_error(self, error: BackendError, *, close: bool = False) -> None:
        """Tell the client of an error."""
        message = InternalError.title if type(error) is InternalError else error.message
        try:
            await self._send({"type": "error", "reason": error.code, "data": message})
            if close:
                await self._websocket.close(1011, error.code)
        except (WebSocketDisconnect, RuntimeError):
            pass  # it is gone already

    async def _carry_out(self) -> None:
        while True:
            pty_id = self._id
            seq, output, closed = await self._call(
                lambda agent, route, pty_id=pty_id: agent.read_pty(route, pty_id, self._seq, _READ_WAIT_S)  # type: ignore[misc]
            )
            if pty_id != self._id:
                continue  # restarted meanwhile: this was the end of the old one
            self._seq = seq
            if output:
                await self._send({"type": "out", "data": base64.b64encode(output).decode("ascii"), "seq": seq})
            if closed:
                await self._send({"type": "exit"})
                return

    async def _carry_in(self) -> None:
        while True:
            text = await self._websocket.receive_text()
            try:
                await self._obey(_frame(text))
            except BackendError as exc:
                await self.send_error(exc)

    async def _obey(self, frame: dict[str, Any]) -> None:
        match frame.get("type"):
            case "stdin":
                data = _bytes(frame.get("chars"))
                await self._call(lambda agent, route: agent.write_pty(route, self._id, data), repeat=False)
            case "resize":
                self._rows = _number(frame.get("rows"), "rows", 1, _MAX_SIDE)
                self._cols = _number(frame.get("cols"), "cols", 1, _MAX_SIDE)
                await self._call(
                    lambda agent, route: agent.resize_pty(route, self._id, rows=self._rows, cols=self._cols)
                )
            case "ping":
                await self._send({"type": "pong"})
            case "restart":
                old = self._id
                self._id, self._seq = token_hex(8), 0
                await self.open()
                await self._call(lambda agent, route: agent.close_pty(route, old))
            case other:
                raise InvalidParameter(f"type: {str(other)[:40]!r} is no frame of a terminal", field="type")

    async def _call(self, call: Callable[[AgentContract, Route], Awaitable[T]], *, repeat: bool = True) -> T:
        return await self._context.reach.agent(self._caller.access_key, self._name, call, repeat=repeat)

    async def _send(self, frame: dict[str, Any]) -> None:
        await self._websocket.send_text(encode(frame).decode())


def _frame(text: str) -> dict[str, Any]:
    try:
        frame = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError) as exc:
        raise BadRequest(f"the frame is no JSON: {exc}") from None
    if not isinstance(frame, dict):
        raise BadRequest("a frame is a JSON object")
    return frame


def _bytes(chars: object) -> bytes:
    if not isinstance(chars, str):
        raise InvalidParameter("chars: give base64 text", field="chars")
    try:
        return base64.b64decode(chars, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter("chars: not base64", field="chars") from None


def _number(value: object, field: str, low: int, high: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise InvalidParameter(f"{field}: give a number from {low} to {high}", field=field)
    return number

"""A short way to an agent for those on its machine: calls over a Unix socket instead of through Ray.

An actor call costs more than all the rest of a short ``execute``. What callers do inside kernels (code, terminals,
files) is never durable and may be repeated, so it needs nothing that Ray adds. A front door on the agent's machine
finds the agent's socket in the data folder; from anywhere else, and while the socket does not answer, the same calls
go through Ray. Both ends are processes of the cluster's own user: the socket lies in a folder that only this user may
enter, and each end asks the kernel who the other one is, which is why pickled records may travel here.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog

from actors.contracts import AgentContract
from actors.peers import Peer, timeout_of
from backendai_ray.core.errors import AgentUnavailable, BackendError, InternalError
from backendai_ray.core.ids import AgentId

log = structlog.get_logger()

METHODS: Final = frozenset(
    {
        "execute",
        "complete",
        "interrupt",
        "open_pty",
        "read_pty",
        "write_pty",
        "resize_pty",
        "close_pty",
        "list_files",
        "write_file",
        "abort_write",
        "open_download",
        "read_download",
        "close_download",
        "usage",
    }
)
"""What is called on a line; everything else changes what the Manager must know of and goes through Ray."""

CONNECT_TIMEOUT_S: Final = 1.0
_MAX_FRAME_BYTES: Final = 2**28
_HEAD: Final = struct.Struct(">I")
_PEER_CREDENTIALS: Final = struct.Struct("3i")


class _Frames(asyncio.Protocol):
    """Splits what arrives into frames of a length and that many bytes."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        if not _is_one_of_us(self._transport):
            log.warning("line.stranger_refused")
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        begin = 0
        while len(received) - begin >= _HEAD.size:
            (size,) = _HEAD.unpack_from(received, begin)
            if size > _MAX_FRAME_BYTES:
                self.close()
                return
            end = begin + _HEAD.size + size
            if len(received) < end:
                break
            self.frame_received(pickle.loads(memoryview(received)[begin + _HEAD.size : end].tobytes()))
            begin = end
        del received[:begin]

    def frame_received(self, frame: Any) -> None:
        raise NotImplementedError

    def send(self, frame: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            data = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((_HEAD.pack(len(data)), data))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class LineServer:
    """The agent's end: calls the methods of a target for whoever connects."""

    def __init__(self, target: object) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[_Answering] = set()

    async def open(self, path: Path) -> None:
        """Listen; a socket that a killed predecessor left is replaced."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Answering(self._target, self._connections), sock=_bound_at(path)
        )

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()


class _Answering(_Frames):
    """One caller's connection: every call is a task of its own, answered when it is done."""

    def __init__(self, target: object, connections: set[_Answering]) -> None:
        super().__init__()
        self._target = target
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def frame_received(self, frame: Any) -> None:
        task = asyncio.ensure_future(self._answer(*frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if method not in METHODS:
                raise InternalError(f"{method} is not called on a direct line")
            answer = (number, True, await getattr(self._target, method)(*args, **kwargs))
        except BackendError as error:
            answer = (number, False, error)
        except Exception as error:
            log.exception("line.call_failed", method=method)
            answer = (number, False, InternalError(f"{type(error).__name__}: {error}"))
        self.send(answer)


class _Calling(_Frames):
    """A caller's connection."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.is_lost = False

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the answer.

        Raises:
            AgentUnavailable: the line broke; the call may have had its effect.
            BackendError: what the method raised.
        """
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.send((number, method, args, kwargs))
            return await answer
        finally:
            self._waiting.pop(number, None)

    def frame_received(self, frame: Any) -> None:
        number, is_good, value = frame
        answer = self._waiting.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value) if is_good else answer.set_exception(value)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(AgentUnavailable(f"{self._name} has hung up", actor=self._name))


class NearAgent:
    """An agent, called on its line while there is one here, and through Ray else."""

    def __init__(self, peer: Peer, path: Path) -> None:
        self._peer = peer
        self._path = path
        self._line: _Calling | None = None
        self._connecting = asyncio.Lock()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        call = partial(self._call, method) if method in METHODS else getattr(self._peer, method)
        object.__setattr__(self, method, call)
        return call

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        line = self._line
        if line is None or line.is_lost:
            line = await self._connect()
        if line is None:
            return await getattr(self._peer, method)(*args, **kwargs)
        timeout_s = timeout_of(method, args, kwargs)
        try:
            async with asyncio.timeout(timeout_s):
                return await line.call(method, args, kwargs)
        except TimeoutError:
            name = self._peer.name
            raise AgentUnavailable(f"{name} did not answer {method} within {timeout_s:g} s", actor=name) from None

    async def _connect(self) -> _Calling | None:
        """Return a line, or nothing when there is no agent behind that socket on this machine."""
        async with self._connecting:
            if self._line is not None and not self._line.is_lost:
                return self._line  # made while we waited
            self._line = None
            if not os.path.exists(self._path):  # noqa: ASYNC240 - one stat of a local file, microseconds
                return None
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                end.setblocking(False)
                _with_short_path(self._path, end.connect)
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    loop = asyncio.get_running_loop()
                    _, self._line = await loop.create_unix_connection(lambda: _Calling(self._peer.name), sock=end)
            except (OSError, TimeoutError):
                end.close()
            return self._line


def near_agent(peer: AgentContract, path: Path) -> AgentContract:
    """Return the agent that ``peer`` reaches through Ray, called on its line where that is here."""
    assert isinstance(peer, Peer)
    return cast(AgentContract, NearAgent(peer, path))


def line_path(data_dir: Path, agent_id: AgentId) -> Path:
    """Return where the socket of an agent is, on its machine."""
    return data_dir / "lines" / f"{agent_id}.sock"


def _bound_at(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _with_short_path(path, listener.bind)
    except BaseException:
        listener.close()
        raise
    return listener


def _with_short_path(path: Path, use: Callable[[str], object]) -> None:
    """Use a socket's path however long it is: the kernel takes 107 bytes, so it is named from its open folder."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _is_one_of_us(transport: asyncio.Transport) -> bool:
    """Return whether the process at the other end is of our user, or root."""
    end = transport.get_extra_info("socket")
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(credentials)
    return uid in (0, os.geteuid())

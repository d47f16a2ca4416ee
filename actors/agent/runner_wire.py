"""Requests to a kernel's runner over its Unix socket, and the answers, on an asyncio loop.

zmq.asyncio costs more per message than the rest of a round trip; here one reader callback on the socket's own
descriptor receives everything and resolves the future that waits for it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from backendai_ray.core.errors import (
    BackendError,
    Conflict,
    InternalError,
    InvalidParameter,
    KernelBusy,
    KernelUnreachable,
    RunNotFound,
    UnsupportedByImage,
)

MAX_SOCKET_PATH_BYTES = 107
ANSWER_TIMEOUT_S = 10.0
MAX_MESSAGES_A_TURN = 64
MAX_FRAME_BYTES = 1 << 26

_ERRORS: dict[str, type[BackendError]] = {
    "bad-request": InvalidParameter,
    "busy": KernelBusy,
    "not-waiting": Conflict,
    "too-many": KernelBusy,
    "unknown-run": RunNotFound,
    "unsupported": UnsupportedByImage,
    "unauthorized": KernelUnreachable,
}


class RunnerWire:
    """One DEALER connected to one runner; as soon as the runner is gone every waiting request fails.

    Bound to the event loop in which :meth:`open` was called.
    """

    def __init__(self, socket_path: Path, token: str) -> None:
        size = len(os.fsencode(socket_path))
        if size > MAX_SOCKET_PATH_BYTES:
            raise InvalidParameter(
                f"socket_path: {socket_path} has {size} bytes, a Unix socket's path may have {MAX_SOCKET_PATH_BYTES};"
                " choose a shorter directory",
                field="socket_path",
            )
        self._path = socket_path
        self._token = token.encode()
        self._pending: dict[bytes, asyncio.Future[list[bytes]]] = {}
        self._number = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why the connection is of no use any more, or None."""
        return self._lost

    async def open(self, deadline: float) -> None:
        """Wait for the runner's socket to appear and connect to it.

        Args:
            deadline: the loop's time at which to give up.

        Raises:
            KernelUnreachable: there was no socket until the deadline.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not _exists(self._path):
            now = loop.time()
            if now >= deadline:
                raise KernelUnreachable("the kernel's runner has not opened its socket in time")
            # A start takes some 100 ms: look every millisecond first, then ever less often.
            await asyncio.sleep(min(0.02, max(0.001, (now - started) / 100)))
        self._connect(loop)

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        socket: zmq.Socket[bytes] = _context().socket(zmq.DEALER)
        self._socket = socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        # Whoever is root in a container can replace the runner: what it sends must not fill the agent's memory.
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 20)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(f"ipc://{self._path}")
        loop.add_reader(_fd(socket), self._on_readable)
        loop.add_reader(_fd(self._monitor), self._on_monitor)
        # A socket signals its descriptor only after it was found empty once.
        self._on_readable()
        self._on_monitor()

    def close(self, why: str = "the link was closed") -> None:
        """Let go of the socket; requests under way fail with *why*."""
        if self._lost is None:
            self._lost = why
        socket, monitor = self._socket, self._monitor
        self._socket = self._monitor = None
        if socket is not None and monitor is not None:
            self._loop.remove_reader(_fd(socket))
            self._loop.remove_reader(_fd(monitor))
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(KernelUnreachable(self._lost))

    async def request(self, verb: bytes, *frames: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> list[bytes]:
        """Send one request and return its answer's frames.

        Raises:
            KernelUnreachable: the runner is gone or has not answered within *timeout_s*.
            BackendError: the class that stands for the runner's refusal.
        """
        socket = self._socket
        if socket is None:
            raise KernelUnreachable(self._lost or "the link is not connected yet")
        self._number += 1
        number = b"%d" % self._number
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._pending[number] = future
        timer = self._loop.call_later(timeout_s, self._expire, number, verb, timeout_s)
        try:
            socket.send_multipart([self._token, number + b" " + verb, *frames])
            # Sending may use up the edge that the descriptor would have told about an arrival.
            if _readable(socket):
                self._loop.call_soon(self._on_readable)
            return await future
        finally:
            timer.cancel()
            self._pending.pop(number, None)

    def _expire(self, number: bytes, verb: bytes, timeout_s: float) -> None:
        future = self._pending.get(number)
        if future is not None and not future.done():
            future.set_exception(KernelUnreachable(f"no answer to {verb.decode()!r} within {timeout_s:g} s"))

    def _on_readable(self) -> None:
        for _ in range(MAX_MESSAGES_A_TURN):
            socket = self._socket
            if socket is None or not _readable(socket):
                return
            self._resolve(socket.recv_multipart(zmq.NOBLOCK))
        self._loop.call_soon(self._on_readable)

    def _resolve(self, frames: list[bytes]) -> None:
        number, _, outcome = frames[0].partition(b" ")
        future = self._pending.get(number)
        if future is None or future.done():
            return  # whoever asked has given up
        if outcome == b"ok":
            future.set_result(frames[1:])
        else:
            code = outcome.partition(b" ")[2].decode("ascii", "replace")
            message = frames[1].decode("utf-8", "replace")[:1000] if len(frames) > 1 else code
            future.set_exception(_ERRORS.get(code, InternalError)(message))

    def _on_monitor(self) -> None:
        while self._monitor is not None and _readable(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._on_readable()  # answers that arrived before the end still count
                self.close("the kernel's runner has ended")


@functools.cache
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One context for all links of this process, without the default limit of some 500 of them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))
    return context


def _exists(path: Path) -> bool:
    return os.path.exists(path)


def _fd(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(zmq.FD))


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

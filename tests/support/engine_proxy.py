"""A Unix socket in front of the Docker engine's, which a test makes slow, faulty or deaf."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

_HEAD_LIMIT = 65536
_FAILURE = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 29\r\n\r\n{"message": "made to fail"}  '
)


class EngineProxy:
    """Passes on each request in a connection of its own, unless told otherwise."""

    def __init__(self, engine: str = "/var/run/docker.sock") -> None:
        self._engine = engine
        self._folder = Path(tempfile.mkdtemp(prefix="bai-proxy-", dir="/tmp"))
        self.delay_s = 0.0
        """How long each request waits."""
        self.fails: random.Random | None = None
        """With it, a quarter of all requests get an error."""
        self.asked: list[str] = []
        """The first lines of all requests."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    @property
    def address(self) -> str:
        """What ``DOCKER_HOST`` is to be."""
        return f"unix://{self._folder}/s"

    def start(self) -> None:
        """Answer."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / "s")
        self._listener.bind(str(self._folder / "s"))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Hang up on everybody, as an engine that is restarted does."""
        listener, self._listener = self._listener, None
        with self._lock:
            connections = list(self._open)
        if listener is not None:
            # Closing it alone would leave a thread in accept, and the socket with it.
            connections.append(listener)
        for one in connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if listener is not None:
            listener.close()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            with self._lock:
                self._open |= {client, engine}
            try:
                head = self._head(client)
                if not head:
                    return
                time.sleep(self.delay_s)
                if self._is_to_fail(head):
                    client.sendall(_FAILURE)
                    return
                engine.connect(self._engine)
                engine.sendall(head)
                back = threading.Thread(target=_pump, args=(engine, client), daemon=True)
                back.start()
                _pump(client, engine)
                back.join()
            finally:
                with self._lock:
                    self._open -= {client, engine}

    def _head(self, client: socket.socket) -> bytes:
        """Return a request as far as it was read, with the wish that its connection be closed after it."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_LIMIT:
            more = client.recv(4096)
            if not more:
                return b""
            head += more
        line, _, rest = head.partition(b"\r\n")
        if b"upgrade:" in rest.lower():
            return head
        return line + b"\r\nConnection: close\r\n" + rest.replace(b"Connection: keep-alive\r\n", b"")

    def _is_to_fail(self, head: bytes) -> bool:
        line = head.partition(b"\r\n")[0].decode()
        with self._lock:
            self.asked.append(line)
            return self.fails is not None and "_ping" not in line and self.fails.random() < 0.25


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)

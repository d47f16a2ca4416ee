"""A command run in a container through the engine's exec."""

from __future__ import annotations

import socket as sockets
import struct
from typing import Any

from docker.api.client import APIClient
from docker.errors import DockerException

_STREAMS = {0: "stdout", 1: "stdout", 2: "stderr"}


class DockerExec:
    """See :class:`actors.agent.backends.base.ExecProcess`."""

    def __init__(self, api: APIClient, exec_id: str, response: Any, *, tty: bool) -> None:
        self._api = api
        self._exec_id = exec_id
        self._response = response
        self._socket: sockets.socket = getattr(response, "_sock", response)
        self._socket.settimeout(None)
        self._tty = tty
        self._left = 0
        self._stream = "stdout"

    def read(self) -> tuple[str, bytes] | None:
        if self._tty:
            data = self._receive(65536)
            return ("stdout", data) if data else None
        while self._left == 0:
            header = self._receive_exactly(8)
            if header is None:
                return None
            kind, self._left = struct.unpack(">BxxxL", header)
            self._stream = _STREAMS.get(kind, "stdout")
        data = self._receive(min(self._left, 65536))
        if not data:
            return None
        self._left -= len(data)
        return self._stream, data

    def exit_code(self) -> int:
        try:
            code = self._api.exec_inspect(self._exec_id).get("ExitCode")
        except DockerException:
            return 255
        return 255 if code is None else int(code)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def resize(self, rows: int, cols: int) -> None:
        self._api.exec_resize(self._exec_id, height=rows, width=cols)

    def close(self) -> None:
        """Hang up."""
        try:
            self._socket.shutdown(sockets.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
        self._response.close()

    def _receive(self, size: int) -> bytes:
        try:
            return self._socket.recv(size)
        except OSError:
            return b""

    def _receive_exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            more = self._receive(size - len(data))
            if not more:
                return None
            data += more
        return data

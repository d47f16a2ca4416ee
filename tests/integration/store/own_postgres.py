"""A PostgreSQL server that a test may kill, and start again with the same data."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.support.processes import free_port, running_server
from tests.support.requirements import missing


class OwnPostgres:
    """One server on loopback, started and killed at will."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._port = free_port()
        self._running = ExitStack()
        self._pid = 0
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def create(self) -> None:
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        subprocess.run(
            [self._programs / "initdb", "-D", self._folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=self._folder,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
        )

    def start(self) -> None:
        command = [self._programs / "postgres", "-D", self._folder / "data", "-c", f"port={self._port}"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}"]
        command += ["-c", "shared_buffers=16MB"]
        process = self._running.enter_context(
            running_server(
                command,
                is_ready=self._answers,
                log=self._folder / "log",
                user=self._user,
                stop_signal=signal.SIGINT,
            )
        )
        self._pid = process.pid

    def kill(self) -> None:
        """End the server without any farewell to its clients."""
        os.kill(self._pid, signal.SIGQUIT)
        self._running.close()

    def freeze(self) -> None:
        """The server and what it runs are there and say nothing."""
        for pid in self._processes():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return [self._pid, *map(int, children)]

    def cut_connections(self) -> None:
        """Break every connection but ours."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    def stop(self) -> None:
        self._running.close()

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


def make_own_postgres() -> Iterator[OwnPostgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = found[-1] if found else shutil.which("initdb")
    if program is None:
        missing("PostgreSQL is not installed")
    # Not below pytest's own folder: that is closed to the user the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="backendai-ray-pg-"))
    server = OwnPostgres(Path(program).parent, folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


own_postgres = pytest.fixture(make_own_postgres, name="own_postgres")

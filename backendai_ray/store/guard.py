"""One writer at a time: who holds the guard may write, and a holder that dies lets go by dying.

SQLite: a lock on ``FILE.lock``, which the kernel takes back from a dead process. PostgreSQL: an advisory lock of the
writer's own connection, which the server takes back with the connection. Behind both stands a fence inside the
data: every commit names its writer, and is refused once another has signed in (see :mod:`.writer`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, text

from backendai_ray.core.errors import StoreUnavailable

_POLL_S = 0.02
_ADVISORY_KEY = 0x6261_692D_7261_79  # "bai-ray"


class Guard(Protocol):
    """Keeps a second writer out."""

    def acquire(self, connection: Connection, wait_s: float) -> None:
        """Take the guard, waiting for a holder that is about to leave; taking it twice is fine.

        Raises:
            StoreUnavailable: another writer held it all the time.
        """
        ...

    def release(self) -> None:
        """Let go."""
        ...


class FileGuard:
    """The guard of a SQLite file."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def acquire(self, connection: Connection, wait_s: float) -> None:
        if self._fd is not None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _poll(lambda: _flock(fd), wait_s, lambda: _held_by(self._path))
        except BaseException:
            os.close(fd)
            raise
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class AdvisoryGuard:
    """The guard of a PostgreSQL database; it lasts as long as the connection."""

    def acquire(self, connection: Connection, wait_s: float) -> None:
        def attempt() -> bool:
            taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_KEY}).scalar_one()
            connection.commit()
            return bool(taken)

        _poll(attempt, wait_s, lambda: "another Manager is connected to this database")

    def release(self) -> None:
        """Nothing to do: closing the connection lets go."""


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held_by(path: Path) -> str:
    try:
        return f"process {path.read_text().strip() or 'unknown'} holds {path}"
    except OSError:
        return f"another process holds {path}"


def _poll(attempt: Callable[[], bool], wait_s: float, holder: Callable[[], str]) -> None:
    deadline = time.monotonic() + wait_s
    while not attempt():
        if time.monotonic() >= deadline:
            raise StoreUnavailable(f"another Manager uses this store ({holder()}); end it first")
        time.sleep(_POLL_S)

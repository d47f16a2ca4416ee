"""Where the store is, and how to connect: the same SQLAlchemy code for SQLite files and PostgreSQL servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from backendai_ray.core.errors import InvalidParameter

CONNECT_TIMEOUT_S = 3
STATEMENT_TIMEOUT_S = 30
POOL_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Location:
    """A store's address, understood."""

    url: URL
    file: Path | None
    """Of SQLite; ``None`` for a server."""

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read a store URL.

        Raises:
            InvalidParameter: it is neither ``sqlite:///FILE`` nor ``postgresql://…``.
        """
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise _bad_url() from None
        family = url.drivername.partition("+")[0]
        if family == "sqlite":
            if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
                raise InvalidParameter("store.url: SQLite needs a file: sqlite:///FILE", field="store.url")
            return cls(url.set(drivername="sqlite"), Path(url.database).absolute())
        if family in ("postgresql", "postgres"):
            return cls(url.set(drivername="postgresql+psycopg"), None)
        raise _bad_url()

    def __str__(self) -> str:
        if self.file is not None:
            return f"the store file {self.file}"
        port = f":{self.url.port}" if self.url.port else ""
        return f"the database {self.url.database or 'of the store'} at {self.url.host or 'the local socket'}{port}"


def _bad_url() -> InvalidParameter:
    return InvalidParameter("store.url: give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME", field="store.url")


def writer_engine(location: Location) -> Engine:
    """Return an engine of one connection whose transactions are durable when COMMIT returns."""
    if location.file is None:
        return _postgres(location, pool_size=1, options="-c synchronous_commit=on")
    engine = _sqlite(location, pool_size=1)

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _lock_at_once(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reader_engine(location: Location, pool_size: int) -> Engine:
    """Return an engine whose connections cannot change anything; a read sees one moment."""
    if location.file is None:
        options = "-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read"
        return _postgres(location, pool_size=pool_size, options=options)
    engine = _sqlite(location, pool_size=pool_size)

    @event.listens_for(engine, "connect")
    def _read_only(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _sqlite(location: Location, pool_size: int) -> Engine:
    engine = create_engine(
        location.url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={"check_same_thread": False, "timeout": POOL_TIMEOUT_S},
    )

    @event.listens_for(engine, "connect")
    def _we_begin_ourselves(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # else the driver begins late, and DDL outside of transactions

    return engine


def _postgres(location: Location, *, pool_size: int, options: str) -> Engine:
    return create_engine(
        location.url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "backendai-ray",
            # A peer that vanished without a word is noticed in seconds, on either side.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_S}s -c tcp_keepalives_idle=5 "
            f"-c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 {options}",
        },
    )

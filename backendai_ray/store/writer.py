"""The one writer: a thread with its own connection that commits everything waiting in one transaction.

While one transaction is made durable, the next batches gather; so the disk's pace sets the size of a group and not
the number of commits. Guarantees:

* a ticket is answered after its transaction is durable, or with the reason why nothing of it was written;
* a batch that cannot be committed fails alone;
* when the connection breaks in the very moment of COMMIT, the writer reconnects and looks (every transaction counts
  ``meta.commits`` up); only when it cannot look within seconds is the answer ``StoreUnavailable`` with
  ``outcome="unknown"``;
* once another writer has signed in, nothing more is written.
"""

from __future__ import annotations

import copy
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import SQLAlchemyError

from backendai_ray.core.errors import BackendError, StoreUnavailable

from . import apply, faults, schema, tables
from .guard import Guard
from .records import Batch

log = structlog.get_logger()

MAX_GROUP = 512
"""Batches of one transaction; bounds how long the first of them waits."""

SETTLE_S = 3.0
"""How long a COMMIT of unknown outcome is looked into."""

Chore = Callable[[Connection], Any]


@dataclass(slots=True)
class Ticket:
    """One batch, or one chore, waiting for its commit."""

    work: Batch | Chore
    done: Future[Any] = field(default_factory=Future)


@dataclass(slots=True)
class _Position:
    commits: int
    last_event: int


class Writer:
    """Owns the writing connection. ``start`` may be called once, ``stop`` any number of times."""

    def __init__(self, engine: Engine, guard: Guard, where: str, takeover_wait_s: float) -> None:
        self._engine = engine
        self._guard = guard
        self._where = where
        self._takeover_wait_s = takeover_wait_s
        self._token = secrets.token_hex(8)
        self.identity = ""
        self._queue: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._connection: Connection | None = None
        self._position = _Position(0, 0)
        self._fenced = False
        self._door = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Connect, take the guard, migrate, sign in and begin to write; blocks.

        Raises:
            StoreUnavailable: one of these is not possible; the message says which and why.
        """
        try:
            self._open(self._takeover_wait_s, is_first=True)
        except (SQLAlchemyError, OSError, StoreUnavailable) as exc:
            self._drop_connection()
            self._guard.release()
            self._engine.dispose()
            raise faults.as_backend_error(exc, self._where) from (None if isinstance(exc, BackendError) else exc)
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Put a ticket in line."""
        with self._door:
            if not self._closed:
                self._queue.put(ticket)
                return
        ticket.done.set_exception(StoreUnavailable("the store is closed"))

    def stop(self, timeout_s: float | None = None) -> None:
        """Write what is in line, then let go of everything; blocks, but not for longer than told."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ── the thread ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            tickets, open_for_more = self._next_group()
            if tickets:
                self._process(tickets)
        self._drop_connection()
        self._engine.dispose()
        self._guard.release()

    def _next_group(self) -> tuple[list[Ticket], bool]:
        tickets: list[Ticket] = []
        item = self._queue.get()
        while item is not None:
            tickets.append(item)
            if len(tickets) >= MAX_GROUP:
                return tickets, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return tickets, True
        return tickets, False

    def _process(self, tickets: Sequence[Ticket]) -> None:
        """Commit a group; whatever happens, every ticket is answered."""
        for ticket, result in zip(tickets, self._results(tickets), strict=True):
            _answer(ticket, copy.copy(result) if isinstance(result, BackendError) else result)

    def _results(self, tickets: Sequence[Ticket]) -> list[Any]:
        try:
            return self._commit(tickets)
        except (SQLAlchemyError, OSError, BackendError) as exc:
            error: Exception = exc
        except Exception as exc:
            log.exception("store.unwritable", tickets=len(tickets))
            error = exc
        if len(tickets) > 1 and faults.is_about_one_batch(error):
            # The judgement missed something: find out whose it is.
            return [result for ticket in tickets for result in self._results([ticket])]
        said = faults.as_backend_error(error, self._where)
        log.warning("store.commit_failed", tickets=len(tickets), error=said.message)
        return [said] * len(tickets)

    def _commit(self, tickets: Sequence[Ticket]) -> list[Any]:
        """Write the group; once more when the connection turns out to be dead before COMMIT was sent."""
        had_connection = self._connection is not None
        try:
            return self._attempt(tickets)
        except SQLAlchemyError as exc:
            if not (had_connection and faults.is_connection_lost(exc)):
                raise
        return self._attempt(tickets)

    def _attempt(self, tickets: Sequence[Ticket]) -> list[Any]:
        if self._fenced:
            raise StoreUnavailable("another Manager has taken the store over")
        connection = self._connection or self._open(SETTLE_S, is_first=False)
        try:
            results, position = self._fill(connection, tickets)
        except BaseException:
            self._tidy_up(connection)
            raise
        try:
            connection.commit()
        except SQLAlchemyError as exc:
            self._settle(position, exc)
        self._position = position
        return results

    def _fill(self, connection: Connection, tickets: Sequence[Ticket]) -> tuple[list[Any], _Position]:
        batches = [ticket.work for ticket in tickets if isinstance(ticket.work, Batch)]
        group = apply.judge(connection, batches, self._position.last_event)
        apply.write(connection, group)
        errors = iter(group.errors)
        results = [next(errors) if isinstance(t.work, Batch) else t.work(connection) for t in tickets]
        position = _Position(self._position.commits + 1, self._position.last_event + len(group.history))
        self._pass_fence(connection, position)
        return results, position

    def _pass_fence(self, connection: Connection, position: _Position) -> None:
        meta = tables.meta.c
        moved = connection.execute(
            update(tables.meta)
            .where(meta.id == 1, meta.writer == self._token, meta.commits == self._position.commits)
            .values(commits=position.commits, last_event=position.last_event)
        )
        if moved.rowcount != 1:
            self._fenced = True
            raise StoreUnavailable("another Manager has taken the store over")

    # ── connection ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, wait_s: float, *, is_first: bool) -> Connection:
        connection = self._connection = self._engine.connect()
        try:
            self._guard.acquire(connection, wait_s)
            if is_first:
                schema.migrate(connection)
                self._sign_in(connection)
            self._read_position(connection)
        except BaseException:
            self._drop_connection()
            raise
        return connection

    def _sign_in(self, connection: Connection) -> None:
        meta = tables.meta
        with connection.begin():
            identity = connection.execute(select(meta.c.identity).where(meta.c.id == 1)).scalar_one_or_none()
            if identity is None:
                raise StoreUnavailable(f"{self._where} is damaged: its first row is missing")
            self.identity = identity or secrets.token_hex(16)
            connection.execute(update(meta).where(meta.c.id == 1).values(writer=self._token, identity=self.identity))

    def _read_position(self, connection: Connection) -> None:
        row = connection.execute(select(tables.meta).where(tables.meta.c.id == 1)).mappings().one()
        connection.rollback()
        if row["writer"] != self._token:
            self._fenced = True
            raise StoreUnavailable("another Manager has taken the store over")
        self._position = _Position(row["commits"], row["last_event"])

    def _settle(self, position: _Position, cause: SQLAlchemyError) -> None:
        """Find out whether a COMMIT without an answer happened; returns when it did.

        Raises:
            StoreUnavailable: it did not, or (``outcome="unknown"``) that cannot be found out now.
        """
        said = faults.as_backend_error(cause, self._where)
        deadline = time.monotonic() + SETTLE_S
        while True:
            self._drop_connection()
            try:
                self._open(SETTLE_S, is_first=False)
                break
            except (SQLAlchemyError, StoreUnavailable) as exc:
                if self._fenced or time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"{said.message}; whether the last change was saved is not known yet", outcome="unknown"
                    ) from exc
                time.sleep(0.1)
        if self._position.commits != position.commits:
            raise said

    def _tidy_up(self, connection: Connection) -> None:
        """Make the connection usable again after a failure, or drop it."""
        try:
            connection.rollback()
        except SQLAlchemyError:
            self._drop_connection()
            return
        if connection.invalidated:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.invalidate()
            self._connection.close()
        except SQLAlchemyError:
            pass  # it was broken already
        self._connection = None


def _answer(ticket: Ticket, result: Any) -> None:
    if isinstance(result, BaseException):
        ticket.done.set_exception(result)
    else:
        ticket.done.set_result(result)

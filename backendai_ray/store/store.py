"""The store: everything that must survive, behind one asynchronous interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import Kernel, Session, Status

from . import apply, faults, reads
from .engines import Location, reader_engine, writer_engine
from .guard import AdvisoryGuard, FileGuard
from .records import (
    AgentRecord,
    Batch,
    GroupRecord,
    IdempotencyRecord,
    KeypairRecord,
    OutboxEvent,
    QuotaRecord,
    UsageRecord,
)
from .writer import Ticket, Writer

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """Durable state of one cluster.

    A successful ``commit`` survives any crash. A failed one has changed nothing; only when the error carries
    ``details["outcome"] == "unknown"`` (a PostgreSQL server that left in the moment of COMMIT and has not come back)
    must the caller read before it goes on. Reads see everything that was acknowledged before they began, and raise
    ``StoreUnavailable`` when the database is away; it is found again without help.

    One store writes at a time: opening waits for an earlier holder, and a holder that was pushed aside is refused.
    """

    def __init__(
        self, location: Location, writer: Writer, engine: Engine, pool_size: int, answer_timeout_s: float
    ) -> None:
        self._where = str(location)
        self._writer = writer
        self._engine = engine
        self._readers = ThreadPoolExecutor(pool_size, thread_name_prefix="store-reader")
        self._answer_timeout_s = answer_timeout_s
        self._is_closed = False

    @classmethod
    async def open(
        cls, url: str, *, pool_size: int = 4, takeover_wait_s: float = 10.0, answer_timeout_s: float = 40.0
    ) -> Store:
        """Open a store, and bring its schema up to date.

        Args:
            url: ``sqlite:///FILE`` or ``postgresql://…``.
            pool_size: How many reads may run at the same time.
            takeover_wait_s: How long to wait for another Manager that is about to leave; a killed one leaves at once.
            answer_timeout_s: How long a call may take when the database is there and says nothing.

        Raises:
            InvalidParameter: the URL is not understood.
            StoreUnavailable: it cannot be opened; the message says what to do.
        """
        location = Location.parse(url)
        guard = AdvisoryGuard() if location.file is None else FileGuard(location.file)
        writer = Writer(writer_engine(location), guard, str(location), takeover_wait_s)
        await asyncio.to_thread(writer.start)
        return cls(location, writer, reader_engine(location, pool_size), pool_size, answer_timeout_s)

    @property
    def identity(self) -> str:
        """Made when the store was; event numbers mean nothing without it."""
        return self._writer.identity

    async def close(self) -> None:
        """Write what is in line and let go of the database; may be called twice."""
        self._is_closed = True
        await asyncio.to_thread(self._writer.stop, self._answer_timeout_s)
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._engine.dispose)

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # ── changes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self, batch: Batch) -> None:
        """Make a batch durable, all of it or nothing; batches that wait together share one transaction.

        Raises:
            NameInUse: a live session of the same owner has the name; ``session_id`` says which.
            IdempotencyMismatch: the key was used for another request.
            Conflict: a session is stored in the same or a newer version, or the idempotency key was used for the
                same request (``session_id`` says with which result).
            StoreUnavailable: the database is away, full, or taken over by another Manager.
        """
        if batch:
            await self._submit(batch)

    async def trim_outbox(self, upto: int) -> None:
        """Say that events up to this number are on the bus; ``outbox`` does not return them any more."""
        await self._submit(lambda connection: apply.trim_outbox(connection, upto))

    async def sweep_idempotency(self, now: float) -> int:
        """Forget idempotency keys that have expired; returns how many."""
        return int(await self._submit(lambda connection: apply.sweep_idempotency(connection, now)))

    async def sweep_usage(self, before: float) -> int:
        """Forget usage of hours that began before this (Unix seconds); returns how many records."""
        return int(await self._submit(lambda connection: apply.sweep_usage(connection, before)))

    async def sweep_scheduling(self, before: float) -> int:
        """Forget what the scheduler told sessions before that time (Unix seconds); returns how much."""
        return int(await self._submit(lambda connection: apply.sweep_scheduling(connection, before)))

    async def _submit(self, work: Batch | Callable[[Connection], Any]) -> Any:
        ticket = Ticket(work)
        self._writer.submit(ticket)
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                # Shielded: a caller that is cancelled does not cancel what is in line.
                return await asyncio.shield(asyncio.wrap_future(ticket.done))
        except TimeoutError:
            raise StoreUnavailable(
                f"{self._where} does not answer; whether the change was saved is not known yet", outcome="unknown"
            ) from None

    # ── questions ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def live_sessions(self) -> list[Session]:
        """Return every session that is not terminal, oldest first."""
        return await self._read(reads.live_sessions)

    async def recently_ended(self, limit: int) -> list[Session]:
        """Return the newest sessions that have ended, newest first, without their kernels."""
        return await self._read(reads.recently_ended, limit)

    async def session(self, session_id: str) -> Session | None:
        """Return the session of that id."""
        return await self._read(reads.session, session_id)

    async def find(self, access_key: AccessKey | None, name_or_id: str) -> Session | None:
        """Return the live session of that name, the session of that id, the newest ended of that name, or the one
        whose id begins like this (8 characters and more); ``access_key=None`` looks among everybody's.

        Raises:
            InvalidParameter: several ids begin like this.
        """
        return await self._read(reads.find, access_key, name_or_id)

    async def page(
        self, access_key: AccessKey | None, statuses: Sequence[str] = (), limit: int = 100, offset: int = 0
    ) -> tuple[list[Session], int]:
        """Return some sessions, newest first, and how many there are in all; no statuses: any."""
        return await self._read(reads.page, access_key, statuses, limit, offset)

    async def history(self, session_id: str) -> list[StatusChange]:
        """Return a session's status history, oldest first."""
        return await self._read(reads.history, session_id)

    async def scheduling_history(self, session_id: str) -> list[SchedulingEntry]:
        """Return what the scheduler told a session, oldest first."""
        return await self._read(reads.scheduling_history, session_id)

    async def last_scheduling(self, session_ids: Sequence[str]) -> dict[SessionId, SchedulingEntry]:
        """Return the last entry of each of the sessions that have one."""
        return await self._read(reads.last_scheduling, session_ids)

    async def kernel_log(self, kernel_id: str) -> bytes | None:
        """Return what was kept of an ended kernel's log."""
        return await self._read(reads.kernel_log, kernel_id)

    async def kernels_on(self, agent_id: AgentId, statuses: Sequence[Status]) -> list[tuple[SessionId, Kernel]]:
        """Return the kernels on a node that are in one of the statuses."""
        return await self._read(reads.kernels_on, agent_id, statuses)

    async def kernel_session(self, kernel_id: KernelId) -> SessionId | None:
        """Return the session that a kernel belongs to."""
        return await self._read(reads.kernel_session, kernel_id)

    async def idempotent(self, access_key: AccessKey, key: str) -> IdempotencyRecord | None:
        """Return what was recorded under the key, expired or not."""
        return await self._read(reads.idempotent, access_key, key)

    async def keypair(self, access_key: str) -> KeypairRecord | None:
        """Return one keypair."""
        return await self._read(reads.keypair, access_key)

    async def keypairs(self) -> list[KeypairRecord]:
        """Return all keypairs."""
        return await self._read(reads.keypairs)

    async def agents(self) -> list[AgentRecord]:
        """Return every node that was ever there."""
        return await self._read(reads.agents)

    async def groups(self) -> list[GroupRecord]:
        """Return all resource groups."""
        return await self._read(reads.groups)

    async def quotas(self) -> list[QuotaRecord]:
        """Return every quota."""
        return await self._read(reads.quotas)

    async def usage(self, since: float) -> list[UsageRecord]:
        """Return what accounts used in hours that ended after ``since`` (Unix seconds)."""
        return await self._read(reads.usage, since)

    async def outbox(self, after: int = 0, limit: int = 500) -> list[OutboxEvent]:
        """Return events behind ``after`` that are not trimmed yet, in order of commit."""
        return await self._read(reads.outbox, after, limit)

    async def dependencies(self, session_id: str) -> list[SessionId]:
        """Return the sessions that this one waits for."""
        return await self._read(reads.dependencies, session_id)

    async def dependents(self, session_id: str) -> list[SessionId]:
        """Return the sessions that wait for this one."""
        return await self._read(reads.dependents, session_id)

    async def _read(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def ask() -> T:
            with self._engine.connect() as connection:
                return question(connection, *args, **kwargs)

        def ask_and_maybe_again() -> T:
            try:
                return ask()
            except SQLAlchemyError as exc:
                if not faults.is_connection_lost(exc):
                    raise faults.as_backend_error(exc, self._where) from exc
            try:
                return ask()  # the pool was emptied: this one connects anew
            except SQLAlchemyError as exc:
                raise faults.as_backend_error(exc, self._where) from exc

        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._readers, ask_and_maybe_again)
        except TimeoutError:
            raise StoreUnavailable(f"{self._where} does not answer") from None

"""The only way to change a session: step, commit, replace in memory, carry out.

Changes of one session happen one after the other; those of different sessions go on at the same time and share the
store's commits. A change whose commit fails has not happened: memory, devices and agents are as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from backendai_ray.core.errors import BackendError, Conflict, NameInUse, StoreUnavailable
from backendai_ray.core.ids import SessionId
from backendai_ray.core.lifecycle import Effect, Event, StatusChange, TerminateRequested, step
from backendai_ray.core.sessions import Reason, Session
from backendai_ray.store import Batch, KernelLog, UsageRecord

from .accounting import charges_of
from .dependencies import note_dependencies
from .orders import Orders
from .ports import Clock, ManagerStore, Relay
from .waker import Waker
from .world import World

log = structlog.get_logger()

T = TypeVar("T")

Decide = Callable[[Session], Sequence[Event]]
"""Says what happens to a session, given its newest record."""


class Journal:
    """Writes sessions. A call that returns has committed; one that raises has changed nothing that it knows of."""

    def __init__(
        self, world: World, store: ManagerStore, orders: Orders, waker: Waker, clock: Clock, relay: Relay | None
    ) -> None:
        self._world = world
        self._store = store
        self._orders = orders
        self._waker = waker
        self._clock = clock
        self._relay = relay
        self._locks: WeakValueDictionary[SessionId, asyncio.Lock] = WeakValueDictionary()
        self._unsure: set[SessionId] = set()
        """Sessions whose last commit may or may not have happened: the store is asked before they go on."""

    async def advance(
        self, session_id: SessionId, decide: Decide, *, kernel_logs: Sequence[KernelLog] = ()
    ) -> Session | None:
        """Let something happen to a live session and return its newest record; ``None`` when it lives no more.

        Raises:
            StoreUnavailable: the change could not be committed.
        """
        return await asyncio.shield(self._advance(session_id, decide, tuple(kernel_logs)))

    async def _advance(
        self, session_id: SessionId, decide: Decide, kernel_logs: tuple[KernelLog, ...]
    ) -> Session | None:
        after = await self._change(session_id, decide, kernel_logs)
        await self.cancel_doomed()
        return after

    async def _change(
        self, session_id: SessionId, decide: Decide, kernel_logs: tuple[KernelLog, ...] = ()
    ) -> Session | None:
        async with self.exclusively([session_id]):
            before = self._world.book.live.get(session_id)
            if before is None:
                return None
            after, effects, changes = fold(before, decide(before))
            if after is not before:
                await self.commit(Batch(sessions=(after,), changes=changes, kernel_logs=kernel_logs))
                self.take_effect(before, after)
            self._orders.carry_out(after, effects)
        return after

    @asynccontextmanager
    async def exclusively(self, session_ids: Iterable[SessionId]) -> AsyncIterator[None]:
        """Keep other changes of these sessions out, and make sure of what is stored of them."""
        async with AsyncExitStack() as stack:
            for session_id in sorted(set(session_ids)):  # always in the same order: no deadlock
                lock = self._locks.setdefault(session_id, asyncio.Lock())
                await stack.enter_async_context(lock)
                if session_id in self._unsure:
                    await self._make_sure(session_id)
            yield

    async def commit(self, batch: Batch) -> None:
        """Commit, with what the sessions are charged for; remember it when the outcome is not known."""
        try:
            await self._store.commit(self._with_charges(batch))
        except NameInUse:
            raise
        except (StoreUnavailable, Conflict) as exc:
            if isinstance(exc, Conflict) or exc.details.get("outcome") == "unknown":
                self._unsure.update(session.id for session in batch.sessions)
            raise
        if self._relay is not None and batch.changes:
            self._relay.wake()

    def _with_charges(self, batch: Batch) -> Batch:
        """Add the usage that follows from the new records: it is stored with them or not at all."""
        usage = tuple(
            UsageRecord(resource_group=after.spec.resource_group, charge=charge)
            for after in batch.sessions
            for charge in charges_of(self._world.book.live.get(after.id), after)
        )
        return replace(batch, usage=usage) if usage else batch

    def take_effect(self, before: Session | None, after: Session) -> None:
        """Replace a record in memory after its commit."""
        self._waker.wake(self._world.replace(before, after), f"session {after.id} is {after.status}")

    async def cancel_doomed(self) -> None:
        """Cancel sessions whose dependencies have failed; what cannot be committed now is tried by the sweep."""
        doomed = self._world.waiting.doomed
        tried: set[SessionId] = set()
        while todo := [i for i in doomed if i in self._world.book.live and i not in tried]:
            tried.update(todo)
            for session_id in todo:
                await self._cancel(session_id, doomed.get(session_id, ""))

    async def _cancel(self, session_id: SessionId, why: str) -> None:
        cancel = TerminateRequested(
            cause="dependencies", now=self._clock(), reason=Reason.DEPENDENCY_FAILED, message=why
        )
        try:
            await self._change(session_id, lambda _: [cancel])
        except BackendError as exc:
            log.warning("session.not_cancelled", session_id=session_id, error=exc.message)

    async def settle_unsure(self) -> None:
        """Ask the store about changes of unknown outcome; also finds new sessions that were committed after all."""
        for session_id in sorted(self._unsure):
            async with self.exclusively([session_id]):
                pass

    async def _make_sure(self, session_id: SessionId) -> None:
        stored = await self._store.session(session_id)
        self._unsure.discard(session_id)
        known = self._world.book.live.get(session_id)
        if stored is None or (known is not None and known.version >= stored.version):
            if known is not None:
                self._world.drop_tentative_holds(known)
            return
        if known is None and stored.is_terminal:
            return
        log.info("session.adopted", session_id=session_id, version=stored.version)
        if known is None:
            await note_dependencies(self._world.waiting, self._world.book, self._store, stored.spec)
        self.take_effect(known, stored)
        self._orders.redrive(stored)


def fold(session: Session, events: Iterable[Event]) -> tuple[Session, tuple[Effect, ...], tuple[StatusChange, ...]]:
    """Let events happen one after the other; the record counts as one change."""
    effects: tuple[Effect, ...] = ()
    changes: tuple[StatusChange, ...] = ()
    for event in events:
        outcome = step(session, event)
        session = outcome.session
        effects += outcome.effects
        changes += outcome.changes
    return session, effects, changes


async def all_of(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Do jobs at the same time; when some fail, the others are still finished, then the first failure is raised."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)  # type: ignore[arg-type]

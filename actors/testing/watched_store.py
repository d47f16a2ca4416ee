"""A store that is slow, goes away and forgets to answer, and that judges every commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AgentId
from backendai_ray.core.lifecycle import TRANSITIONS
from backendai_ray.core.quotas import Scope, scopes_of
from backendai_ray.core.sessions import TERMINAL, Session, Status
from backendai_ray.store import Batch

from .processes import Process
from .store import MemoryStore


class WatchedStore(MemoryStore):
    """What is committed must be a legal move, and no device may be given to two sessions."""

    def __init__(self, dice: Random, violated: Callable[[str], None]) -> None:
        super().__init__()
        self.unanswered = 0.0
        """The part of the commits that happen and whose caller is told that nobody knows."""
        self.in_flight = 0
        self.capacity: dict[tuple[AgentId, str, str], int] = {}
        """Units by node, slot and device."""
        self._dice = dice
        self._violated = violated
        self._used: dict[tuple[AgentId, str, str], int] = {}
        self._quota_at: dict[Scope, float] = {}

    def link(self, process: Process) -> StoreLink:
        """Return the store as one process reaches it."""
        return StoreLink(self, process)

    async def commit_for(self, process: Process, batch: Batch) -> None:
        """Commit, unless the process dies before."""
        self.in_flight += 1
        try:
            await asyncio.sleep(self._dice.uniform(0, 0.01))
            if not process.is_alive:
                raise asyncio.CancelledError
            before = {session.id: self.records.get(session.id) for session in batch.sessions}
            await self.commit(batch)
            self._quota_at |= dict.fromkeys((q.scope for q in batch.quotas), asyncio.get_running_loop().time())
            for problem in self._problems(before, batch):
                self._violated(problem)
            await asyncio.sleep(self._dice.uniform(0, 0.01))
            if self._dice.random() < self.unanswered:
                raise StoreUnavailable("whether the last change was saved is not known yet", outcome="unknown")
        finally:
            self.in_flight -= 1

    async def _arrive(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is away")

    def _problems(self, before: dict[Any, Session | None], batch: Batch) -> Iterator[str]:
        for session in batch.sessions:
            old = before[session.id]
            moves = [c for c in batch.changes if c.session_id == session.id and c.kernel_id is None]
            status = moves[0].before if old is None and moves else old.status if old is not None else session.status
            for move in moves:
                legal = move.after in TRANSITIONS[move.before] or old is None
                if move.before is not status or not legal:
                    yield f"session {session.id} went from {status} by a move from {move.before} to {move.after}"
                status = move.after
            if status is not session.status:
                yield f"session {session.id} is {session.status}, but its history says {status}"
            if old is not None and old.is_terminal:
                yield f"session {session.id} changed after it was {old.status}"
            yield from self._overbooked(old, session)
            if old is not None and old.status is Status.PENDING and session.status is not Status.PENDING:
                yield from self._over_quota(session)

    def _over_quota(self, placed: Session) -> Iterator[str]:
        for scope in scopes_of(placed.spec):
            quota = self.quota_records.get(scope)
            # A placement that was on its way when the quota came is no breach of it.
            is_new = asyncio.get_running_loop().time() < self._quota_at.get(scope, 0.0) + 1.0
            if is_new or quota is None or quota.limits.sessions is None or placed.is_terminal:
                continue
            holding = [s.id for s in self.records.values() if _holds(s) and scope in scopes_of(s.spec)]
            if len(holding) > quota.limits.sessions:
                yield f"{len(holding)} sessions of {scope} hold devices; {quota.limits.sessions} may"

    def _overbooked(self, old: Session | None, new: Session) -> Iterator[str]:
        for record, sign in ((old, -1), (new, 1)):
            for kernel in record.kernels if record is not None else ():
                if kernel.agent_id is None or kernel.status in TERMINAL:
                    continue
                for slot, device, units in kernel.allocation.parts:
                    key = (kernel.agent_id, str(slot), str(device))
                    self._used[key] = self._used.get(key, 0) + sign * units
                    if self._used[key] > self.capacity.get(key, 0):
                        yield f"{self._used[key]} units of {key} are given out; there are {self.capacity.get(key, 0)}"


def _holds(session: Session) -> bool:
    return any(kernel.agent_id is not None and kernel.status not in TERMINAL for kernel in session.kernels)


class StoreLink:
    """The store as one process reaches it: with the process, what it has not yet sent is gone."""

    def __init__(self, store: WatchedStore, process: Process) -> None:
        self._store = store
        self._process = process

    async def commit(self, batch: Batch) -> None:
        await self._store.commit_for(self._process, batch)

    async def close(self) -> None:
        """The store itself stays."""

    def __getattr__(self, name: str) -> Any:
        if not self._process.is_alive:
            raise asyncio.CancelledError
        return getattr(self._store, name)

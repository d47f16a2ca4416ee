"""Dominant resource fairness: who has the least goes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from itertools import groupby
from operator import attrgetter

from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.scheduling import PendingSession, RunningKernel, Snapshot
from backendai_ray.core.slots import ResourceSlots

from .columns import Room
from .queueing import QueueingPolicy, in_bands


class DominantShares:
    """How much of the resource group each owner has: the largest part of any one slot.

    An owner is an access key. What runs counts wherever it runs in the group.
    """

    def __init__(self, capacity: Mapping[str, int], running: Iterable[RunningKernel]) -> None:
        """Count what runs.

        Args:
            capacity: What the nodes have together when empty, in units by slot.
            running: The kernels that hold devices.
        """
        self._capacity = capacity
        self._has: dict[AccessKey, dict[str, int]] = {}
        for kernel in running:
            self.add(kernel.access_key, kernel.allocation.slots())

    def add(self, owner: AccessKey, slots: ResourceSlots, times: int = 1) -> None:
        """Count what an owner gets, ``times`` over."""
        has = self._has.setdefault(owner, {})
        for slot, units in slots.items():
            has[slot] = has.get(slot, 0) + units * times

    def of(self, owner: AccessKey) -> float:
        """Return an owner's dominant share; of a slot whose nodes have left, everything."""
        has = self._has.get(owner, {})
        return max((units / max(self._capacity.get(slot, 0), units) for slot, units in has.items()), default=0.0)


class DrfQueue:
    """Waiting sessions, the next one always of the owner with the smallest dominant share.

    Shares change as the pass places sessions, so the order is made while it goes on. Among owners with equal shares
    the session that was submitted first comes first; the sessions of one owner stay in the order given.
    """

    def __init__(self, pending: Iterable[PendingSession], shares: DominantShares) -> None:
        """Queue sessions, which come in bands of falling priority."""
        self._pending = pending
        self._shares = shares

    def __iter__(self) -> Iterator[PendingSession]:
        """Return the sessions, each once."""
        for _, band in groupby(self._pending, key=attrgetter("priority")):
            yield from self._fairly(band)

    def placed(self, session: PendingSession) -> None:
        """Count what a session that starts adds to its owner's share."""
        self._shares.add(session.access_key, session.slots, len(session.kernel_ids))

    def _fairly(self, band: Iterable[PendingSession]) -> Iterator[PendingSession]:
        lines: dict[AccessKey, deque[PendingSession]] = {}
        for session in band:
            lines.setdefault(session.access_key, deque()).append(session)
        heap = [self._entry(line) for line in lines.values()]
        heapify(heap)
        while heap:
            line = lines[heap[0][-1]]
            # Only the owner whose turn it is can have got something since, so every other entry still holds.
            yield line.popleft()
            if line:
                heapreplace(heap, self._entry(line))
            else:
                heappop(heap)

    def _entry(self, line: deque[PendingSession]) -> tuple[float, float, SessionId, AccessKey]:
        first = line[0]
        return self._shares.of(first.access_key), first.submitted_at, first.id, first.access_key


class DrfPolicy(QueueingPolicy):
    """Starts, among sessions of one priority, one of the owner who has the least of what he uses most."""

    name = "drf"

    def _queue(self, snapshot: Snapshot, room: Room) -> Iterable[PendingSession]:
        totals = room.columns.capacity.sum(axis=0).tolist()
        capacity = dict(zip(room.columns.slots, totals, strict=True))
        return DrfQueue(in_bands(snapshot.pending), DominantShares(capacity, snapshot.running))

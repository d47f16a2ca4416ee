"""The tree of domains, projects and users: what each branch has, and whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from itertools import groupby
from operator import attrgetter

from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import PendingSession
from backendai_ray.core.usage import Account, account_of

Branch = tuple[str, ...]
"""The root ``()``, a domain, a domain's project, or a user in it (which is an account)."""

ROOT: Branch = ()
_Entry = tuple[float, float, SessionId, Branch]


class Standings:
    """How much of the resource group every branch has, for its weight."""

    def __init__(self, capacity: Mapping[str, int], weights: Mapping[Branch, float]) -> None:
        """Begin with branches that have nothing.

        Args:
            capacity: What the nodes have together when empty, in units by slot.
            weights: How much a branch is entitled to, beside its siblings; 1 for those not named.
        """
        self._capacity = capacity
        self._weights = weights
        self._has: dict[Branch, dict[str, float]] = {}

    def add(self, account: Account, amounts: Mapping[str, float], times: float = 1.0) -> None:
        """Count what an account has, in units by slot, for it and every branch that it is on."""
        for depth in range(1, len(account) + 1):
            has = self._has.setdefault(account[:depth], {})
            for slot, units in amounts.items():
                has[slot] = has.get(slot, 0.0) + units * times

    def of(self, branch: Branch) -> float:
        """Return a branch's standing: the largest part it has of any one slot, over its weight; the least goes next.

        A slot whose nodes have left counts as had whole.
        """
        has = self._has.get(branch, {}).items()
        share = max((units / max(self._capacity.get(slot, 0), units) for slot, units in has if units), default=0.0)
        # Rounded, so that who has the same is equal in whatever order it was summed up.
        return round(share / self._weights.get(branch, 1.0), 12)


class FairTreeQueue:
    """Waiting sessions, the next one always of the branch with the lowest standing, from the root down.

    A domain is chosen among the domains, then a project among its projects, then a user among the project's. Standings
    change as the pass places sessions, so the order is made while it goes on. Among equals the session that was
    submitted first comes first; the sessions of one user stay in the order given.
    """

    def __init__(self, pending: Iterable[PendingSession], standings: Standings, *, entry: float) -> None:
        """Queue sessions.

        Args:
            pending: In bands of falling priority.
            standings: What everybody has; what is placed is added.
            entry: How much each unit of a session that starts adds.
        """
        self._pending = pending
        self._standings = standings
        self._entry = entry

    def __iter__(self) -> Iterator[PendingSession]:
        """Return the sessions, each once."""
        for _, band in groupby(self._pending, key=attrgetter("priority")):
            yield from _Turns(band, self._standings)

    def placed(self, session: PendingSession) -> None:
        """Count what a session that starts adds to its branches."""
        self._standings.add(account_of(session), session.slots, len(session.kernel_ids) * self._entry)


class _Turns:
    """One band: a heap of children for every branch that has somebody waiting."""

    def __init__(self, band: Iterable[PendingSession], standings: Standings) -> None:
        self._standings = standings
        self._lines: dict[Branch, deque[PendingSession]] = {}
        for session in band:
            self._lines.setdefault(account_of(session), deque()).append(session)
        self._heaps: dict[Branch, list[_Entry]] = {ROOT: []}
        level: Iterable[Branch] = self._lines
        while any(level):  # users, then projects, then domains: a parent is entered once its children are
            parents: dict[Branch, None] = {}
            for branch in level:
                self._heaps.setdefault(branch[:-1], []).append(self._entry(branch))
                parents[branch[:-1]] = None
            for parent in parents:
                heapify(self._heaps[parent])
            level = parents

    def __iter__(self) -> Iterator[PendingSession]:
        while self._heaps[ROOT]:
            account = self._account_next(ROOT)
            # Only the branches whose turn it is can have got something since, so every other entry still holds.
            yield self._lines[account].popleft()
            for depth in range(len(account), 0, -1):
                branch, siblings = account[:depth], self._heaps[account[: depth - 1]]
                if self._lines.get(branch) or self._heaps.get(branch):
                    heapreplace(siblings, self._entry(branch))
                else:
                    heappop(siblings)

    def _account_next(self, branch: Branch) -> Branch:
        while branch not in self._lines:
            branch = self._heaps[branch][0][-1]
        return branch

    def _entry(self, branch: Branch) -> _Entry:
        first = self._lines[self._account_next(branch)][0]
        return self._standings.of(branch), first.submitted_at, first.id, branch

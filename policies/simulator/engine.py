"""Discrete events: sessions come and end, a policy decides in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import Node, SchedulingPolicy

from ..checking import problems_of
from .jobs import Job
from .world import Usage, World

Progress = Callable[[int, int], None]
"""Is told how many of how many jobs have ended."""


@dataclass(frozen=True, slots=True)
class History:
    """What happened; times are the trace's, in seconds."""

    jobs: tuple[Job, ...]
    started_at: Mapping[SessionId, float]
    """When each session started; those that never could are not there."""
    usage: Usage
    ended_at: float
    """When the last one ended; the first came at ``jobs[0].session.submitted_at``."""
    passes: int
    """How often the policy decided."""


def simulate(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    policy: SchedulingPolicy,
    *,
    every_s: float = 0.0,
    checked: bool = False,
    progress: Progress | None = None,
) -> History:
    """Replay jobs until all have ended, or nothing that waits can ever start.

    The same arguments give the same history.

    Args:
        nodes: The cluster, empty.
        jobs: In any order; names are unique.
        policy: Decides; a fresh one.
        every_s: The policy decides at multiples of this after the first arrival; 0: whenever something happens.
        checked: Check every plan, which takes longer than most policies do.
        progress: Called now and then.

    Raises:
        InvalidParameter: two jobs have the same name.
        ValueError: a checked plan cannot be carried out.
    """
    replay = _Replay(nodes, jobs, policy, every_s, checked)
    told = 0
    while replay.step():
        if progress is not None and replay.ended - told >= max(1, len(jobs) // 100):
            told = replay.ended
            progress(told, len(jobs))
    return replay.history()


class _Replay:
    def __init__(
        self, nodes: Sequence[Node], jobs: Sequence[Job], policy: SchedulingPolicy, every_s: float, checked: bool
    ) -> None:
        self._jobs = tuple(sorted(jobs, key=lambda job: (job.session.submitted_at, job.session.id)))
        self._duration = {job.session.id: job.duration_s for job in self._jobs}
        if len(self._duration) < len(self._jobs):
            raise InvalidParameter("two jobs have the same name", field="name")
        self._policy = policy
        self._every_s, self._checked = every_s, checked
        self._world = World(nodes)
        self._begin = self._now = self._jobs[0].session.submitted_at if self._jobs else 0.0
        self._world.usage.advance(self._begin)
        self._arrived = self.ended = self._passes = 0
        self._ends: list[tuple[float, SessionId]] = []
        self._started_at: dict[SessionId, float] = {}

    def step(self) -> bool:
        """Go on to the next moment at which something happens, and decide; return whether there was one."""
        next_at = self._next_at()
        if next_at is None:
            return False
        if self._every_s:
            tick = self._begin + math.ceil((next_at - self._begin) / self._every_s) * self._every_s
            next_at = max(next_at, tick)  # rounding must not put the pass before what it waits for
        while (event_at := self._next_at()) is not None and event_at <= next_at:
            self._happen(event_at)
        if self._world.pending:
            self._decide(next_at)
        return True

    def history(self) -> History:
        return History(self._jobs, self._started_at, self._world.usage, self._now, self._passes)

    def _next_at(self) -> float | None:
        coming = self._jobs[self._arrived].session.submitted_at if self._arrived < len(self._jobs) else math.inf
        ending = self._ends[0][0] if self._ends else math.inf
        soonest = min(coming, ending)
        return None if soonest == math.inf else soonest

    def _happen(self, now: float) -> None:
        """Let what happens at a moment happen; ends come first, so that who comes finds the room."""
        self._now = now
        while self._ends and self._ends[0][0] <= now:
            self._world.end(heappop(self._ends)[1], now)
            self.ended += 1
        while self._arrived < len(self._jobs) and self._jobs[self._arrived].session.submitted_at <= now:
            session = self._jobs[self._arrived].session
            self._world.pending[session.id] = session
            self._arrived += 1

    def _decide(self, now: float) -> None:
        snapshot = self._world.snapshot(now)
        plan = self._policy.decide(snapshot)
        self._passes += 1
        if self._checked and (problems := problems_of(snapshot, plan)):
            raise ValueError(f"at {now}: {problems[0]}")
        for placement in plan.placements:
            self._world.start(placement, now)
            self._started_at[placement.session_id] = now
            heappush(self._ends, (now + self._duration[placement.session_id], placement.session_id))

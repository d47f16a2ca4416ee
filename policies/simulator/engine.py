"""Discrete events: sessions come and end, nodes fail and come back, a policy decides in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.scheduling import Node, Plan, SchedulingPolicy

from ..checking import problems_of
from .faults import Faults, WhenLost
from .jobs import Job
from .timeline import Timeline
from .world import Usage, World

Progress = Callable[[int, int], None]
"""Is told how many of how many jobs have ended."""


@dataclass(frozen=True, slots=True)
class Run:
    """One stay of a session on nodes, from ``started_at`` to ``ended_at``."""

    session_id: SessionId
    started_at: float
    ended_at: float
    is_lost: bool = False
    """It was cut off; what it did was for nothing."""
    is_preempted: bool = False
    """It was cut off for a more important session."""


@dataclass(frozen=True, slots=True)
class History:
    """What happened; times are the trace's, in seconds."""

    jobs: tuple[Job, ...]
    started_at: Mapping[SessionId, float]
    """When each session first started; those that never could are not there."""
    usage: Usage
    ended_at: float
    """When the last one ended; the first came at ``jobs[0].session.submitted_at``."""
    passes: int
    """How often the policy decided."""
    runs: tuple[Run, ...]
    """In the order of their ends."""
    finished_at: Mapping[SessionId, float]
    """When each session was done; those that failed or never started are not there."""
    timeline: Timeline


def simulate(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    policy: SchedulingPolicy,
    *,
    every_s: float = 0.0,
    checked: bool = False,
    faults: Faults | None = None,
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
        faults: Which nodes fail when; none by default.
        progress: Called now and then.

    Raises:
        InvalidParameter: two jobs have the same name.
        ValueError: a checked plan cannot be carried out.
    """
    replay = _Replay(nodes, jobs, policy, every_s, checked, faults or Faults())
    told = 0
    while replay.step():
        if progress is not None and replay.ended - told >= max(1, len(jobs) // 100):
            told = replay.ended
            progress(told, len(jobs))
    return replay.history()


class _Replay:
    def __init__(
        self,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        policy: SchedulingPolicy,
        every_s: float,
        checked: bool,
        faults: Faults,
    ) -> None:
        self._jobs = tuple(sorted(jobs, key=lambda job: (job.session.submitted_at, job.session.id)))
        self._job = {job.session.id: job for job in self._jobs}
        if len(self._job) < len(self._jobs):
            raise InvalidParameter("two jobs have the same name", field="name")
        self._policy = policy
        self._every_s, self._checked = every_s, checked
        self._world = World(nodes)
        self._begin = self._now = self._jobs[0].session.submitted_at if self._jobs else 0.0
        self._world.usage.advance(self._begin)
        self._ended_at = self._begin
        self._arrived = self.ended = self._passes = 0
        self._ends: list[tuple[float, SessionId]] = []
        self._runs_since: dict[SessionId, float] = {}
        """When the present run of each session that runs began."""
        self._started_at: dict[SessionId, float] = {}
        self._finished_at: dict[SessionId, float] = {}
        self._runs: list[Run] = []
        self._timeline = Timeline()
        self._breakdowns = _Breakdowns(faults, nodes, self._begin)
        self._losses: dict[SessionId, int] = {}
        self._cuts: list[tuple[float, SessionId, float, bool]] = []
        """When sessions that are preempted must have ended: with the begin of the run, and whether they run again."""
        self._look_at = math.inf
        """When the policy said that time alone makes another decision worth while."""

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
        self._timeline.note(self._now, self._world.usage, len(self._world.pending))
        return True

    def history(self) -> History:
        return History(
            jobs=self._jobs,
            started_at=self._started_at,
            usage=self._world.usage,
            ended_at=self._ended_at,
            passes=self._passes,
            runs=tuple(self._runs),
            finished_at=self._finished_at,
            timeline=self._timeline,
        )

    def _next_at(self) -> float | None:
        coming = self._jobs[self._arrived].session.submitted_at if self._arrived < len(self._jobs) else math.inf
        ending = self._next_end()
        soonest = min(coming, ending, self._cuts[0][0] if self._cuts else math.inf)
        if soonest < math.inf:
            return min(soonest, self._look_at, self._breakdowns.next_at())
        # Nothing runs and nothing comes: only a node that comes back can let something start.
        if self._world.pending and self._breakdowns.may_still_help():
            return self._breakdowns.next_at()
        return None

    def _next_end(self) -> float:
        while self._ends and self._is_void(self._ends[0]):
            heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def _is_void(self, end: tuple[float, SessionId]) -> bool:
        """Return whether the run that was to end then was cut off before."""
        ends_at, session_id = end
        since = self._runs_since.get(session_id)
        return since is None or since + self._job[session_id].duration_s != ends_at

    def _happen(self, now: float) -> None:
        """Let what happens at a moment happen; ends come first, so that who comes finds the room."""
        self._now = now
        self._look_at = self._look_at if self._look_at > now else math.inf
        while self._next_end() <= now:
            self._end(heappop(self._ends)[1], now)
        while self._cuts and self._cuts[0][0] <= now:
            _, session_id, since, runs_again = heappop(self._cuts)
            if self._runs_since.get(session_id) == since:
                self._cut_off(session_id, now, runs_again=runs_again)
        for agent_id, is_out in self._breakdowns.until(now):
            for session_id in self._world.set_out(agent_id, is_out, now):
                self._lose(session_id, now)
        while self._arrived < len(self._jobs) and self._jobs[self._arrived].session.submitted_at <= now:
            session = self._jobs[self._arrived].session
            self._world.pending[session.id] = session
            self._arrived += 1
            self._ended_at = now

    def _end(self, session_id: SessionId, now: float) -> None:
        self._world.end(session_id, now)
        self._runs.append(Run(session_id, self._runs_since.pop(session_id), now))
        self._finished_at[session_id] = self._ended_at = now
        self.ended += 1

    def _lose(self, session_id: SessionId, now: float) -> None:
        waits = self._world.restarts_as(session_id, is_failure=True)
        self._world.end(session_id, now)
        self._runs.append(Run(session_id, self._runs_since.pop(session_id), now, is_lost=True))
        self._ended_at = now
        losses = self._losses[session_id] = self._losses.get(session_id, 0) + 1
        if self._breakdowns.faults.when_lost is WhenLost.FAIL or losses >= self._breakdowns.faults.most_losses:
            self.ended += 1
        else:
            self._world.requeue(waits)

    def _cut_off(self, session_id: SessionId, now: float, *, runs_again: bool) -> None:
        waits = self._world.restarts_as(session_id)
        self._world.end(session_id, now)
        since = self._runs_since.pop(session_id)
        self._runs.append(Run(session_id, since, now, is_lost=True, is_preempted=True))
        self._ended_at = now
        if runs_again:
            self._world.requeue(waits)
        else:
            self.ended += 1

    def _preempt(self, plan: Plan, now: float) -> None:
        """Give those that are preempted notice; whoever ends within its grace is done."""
        for line in plan.preemptions:
            self._world.mark_ending(line.victim, line.beneficiary)
            at = now + (line.grace_s or 0.0)
            heappush(self._cuts, (at, line.victim, self._runs_since[line.victim], line.reschedule))
        for placement in plan.nominations:
            self._world.nominate(placement)

    def _decide(self, now: float) -> None:
        snapshot = self._world.snapshot(now)
        plan = self._policy.decide(snapshot)
        self._passes += 1
        if self._checked and (problems := problems_of(snapshot, plan)):
            raise ValueError(f"at {now}: {problems[0]}")
        for placement in plan.placements:
            self._world.start(placement, now)
            self._started_at.setdefault(placement.session_id, now)
            self._runs_since[placement.session_id] = now
            heappush(self._ends, (now + self._job[placement.session_id].duration_s, placement.session_id))
        self._preempt(plan, now)
        self._look_at = plan.next_at if plan.next_at is not None and plan.next_at > now else math.inf
        if plan.placements:
            self._breakdowns.something_started()


class _Breakdowns:
    """Follows the outages: which nodes are out, and what happens next."""

    def __init__(self, faults: Faults, nodes: Sequence[Node], begin: float) -> None:
        self.faults = faults
        self._coming = faults.of(nodes, begin)
        self._next = next(self._coming, None)
        self._returns: list[tuple[float, AgentId]] = []
        self._out: dict[AgentId, int] = {}
        self._most_idle = 4 * len(nodes) + len(faults.outages)
        self._idle = 0

    def next_at(self) -> float:
        """Return when the next node fails or comes back; infinite when none does."""
        failing = self._next.at if self._next is not None else math.inf
        return min(failing, self._returns[0][0] if self._returns else math.inf)

    def may_still_help(self) -> bool:
        """Return whether waiting for nodes is worth while: some are out, and enough came back not to give up yet.

        Each node had its chance by then; who asks for more nodes than are ever up together would wait for ever.
        """
        return bool(self._returns) and self._idle < self._most_idle

    def something_started(self) -> None:
        """Begin to count anew how many nodes came back without any use."""
        self._idle = 0

    def until(self, now: float) -> list[tuple[AgentId, bool]]:
        """Return which nodes go out (true) or come back (false) up to now, in that order of time."""
        changed: list[tuple[AgentId, bool]] = []
        while self.next_at() <= now:
            if self._returns and (self._next is None or self._returns[0][0] <= self._next.at):
                _, agent_id = heappop(self._returns)
                self._idle += 1
                self._out[agent_id] -= 1
                if not self._out[agent_id]:
                    changed.append((agent_id, False))
            elif self._next is not None:
                outage, self._next = self._next, next(self._coming, None)
                if outage.until < math.inf:
                    heappush(self._returns, (outage.until, outage.agent_id))
                self._out[outage.agent_id] = self._out.get(outage.agent_id, 0) + 1
                if self._out[outage.agent_id] == 1:
                    changed.append((outage.agent_id, True))
        return changed

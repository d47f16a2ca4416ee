"""What is to come if nothing new is submitted: the policy itself decides on the future, as sessions reach their limits.

The same ``decide`` that places sessions now is asked again whenever, in virtual time, a session ends or a start time
comes. So the outlook knows of queue order, backfill, priorities and gangs what the policy knows. It is an estimate:
sessions end earlier than their limits, those without one end when they are expected to, and others are submitted
meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from heapq import heappop, heappush
from operator import attrgetter
from types import MappingProxyType

from backendai_ray.core.explanations import StartBasis, StartEstimate
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import (
    PendingSession,
    Placement,
    Plan,
    Preemption,
    RefusalCode,
    RunningKernel,
    Snapshot,
)

MAX_PASSES = 2000
"""Passes in virtual time; who has no place by then will not know when."""

_BY_SUBMISSION = attrgetter("submitted_at", "id")
_FOR_EVER_S = 100 * 365 * 86400.0
"""A time limit of so long is none."""

NEVER_AS_THINGS_ARE = frozenset(
    {
        RefusalCode.NO_NODES,
        RefusalCode.TOO_LARGE,
        RefusalCode.ARCHITECTURE,
        RefusalCode.NOT_DESIGNATED,
        RefusalCode.UNSCHEDULABLE,
        RefusalCode.POLICY_FAILED,
    }
)
"""Reasons that no session's end removes."""


class Outlook:
    """The future of one snapshot, worked out as far as somebody asks; another question goes on where it stopped."""

    def __init__(self, snapshot: Snapshot, decide: Callable[[Snapshot], Plan], *, max_passes: int = MAX_PASSES) -> None:
        """Begin at the snapshot's time.

        Args:
            snapshot: The world now.
            decide: The policy's; of an instance that nobody else uses meanwhile.
            max_passes: How often it is asked at most.
        """
        self.begun_at = snapshot.now
        self._decide = decide
        self._future = _Future(snapshot)
        self._passes_left = max_passes
        self._is_over = False
        self._started: dict[SessionId, StartEstimate] = {}

    def start_of(self, session_id: SessionId, give_up: Callable[[], bool] = lambda: False) -> StartEstimate:
        """Return when a session that waits may start.

        Args:
            session_id: One of the snapshot's pending sessions.
            give_up: Asked before each pass; true: do not look further ahead now.
        """
        while session_id not in self._started and not self._is_over and not give_up():
            self._pass()
        if session_id in self._started:
            return self._started[session_id]
        if self._is_over and self._passes_left > 0:
            return self._future.why_not_known(session_id)
        message = f"more is to come before its turn than was looked at, which goes up to {_clock(self._future.now)}"
        return StartEstimate(basis=StartBasis.UNKNOWN, not_before=self._future.now, message=message)

    def _pass(self) -> None:
        plan = self._decide(self._future.snapshot())
        self._passes_left -= 1
        for placement in plan.placements:
            self._started[placement.session_id] = self._future.start_now()
            self._future.start(placement)
        for preemption in plan.preemptions:
            self._future.preempt(preemption)
        goes_on = bool(plan.preemptions) or self._future.advance(plan.next_at)
        self._is_over = not goes_on or self._passes_left <= 0


class _Future:
    """The world in virtual time. A node that did not change is the same object in the next snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot.now
        self._begun_at = snapshot.now
        self._first = snapshot
        self._pending = {session.id: session for session in snapshot.pending}
        self._kernels: dict[SessionId, dict[KernelId, RunningKernel]] = defaultdict(dict)
        self._nodes = {node.agent_id: node for node in snapshot.nodes}
        self._held = {node.agent_id: dict(node.held) for node in snapshot.nodes}
        self._stale: set[AgentId] = set()
        self._ends: list[tuple[float, SessionId]] = []
        self._predicted: set[SessionId] = set()
        """Sessions whose end is not known but by what their owners' last ones did."""
        self._some_ended = self._on_prediction = False
        for kernel in snapshot.running:
            self._kernels[kernel.session_id][kernel.kernel_id] = kernel
        for session_id, kernels in self._kernels.items():
            one = next(iter(kernels.values()))
            if one.ending or session_id in self._pending:
                self._end_at(session_id, self.now)  # it is being taken back
            else:
                self._will_end(session_id, one)

    def snapshot(self) -> Snapshot:
        for agent_id in self._stale:
            node = self._nodes[agent_id]
            self._nodes[agent_id] = replace(node, held=MappingProxyType(dict(self._held[agent_id])))
        self._stale.clear()
        return replace(
            self._first,
            now=self.now,
            pending=tuple(self._pending.values()),
            running=tuple(kernel for kernels in self._kernels.values() for kernel in kernels.values()),
            nodes=tuple(self._nodes.values()),
        )

    def start(self, placement: Placement) -> None:
        session = self._pending.pop(placement.session_id)
        for placed in placement.kernels:
            self._kernels[session.id][placed.kernel_id] = RunningKernel(
                kernel_id=placed.kernel_id,
                session_id=session.id,
                agent_id=placed.agent_id,
                access_key=session.access_key,
                project=session.project,
                domain=session.domain,
                user=session.user,
                allocation=placed.allocation,
                priority=session.priority,
                placed_at=self.now,
                time_limit_s=session.time_limit_s,
                expected_s=session.expected_s,
                # Who may be put back into the queue is not told of sessions that wait; it counts as ended for good.
            )
            self._held[placed.agent_id][placed.kernel_id] = placed.allocation
            self._stale.add(placed.agent_id)
        self._will_end(session.id, next(iter(self._kernels[session.id].values())))

    def end(self, session_id: SessionId) -> None:
        for kernel in self._kernels.pop(session_id, {}).values():
            if self._held.get(kernel.agent_id, {}).pop(kernel.kernel_id, None) is not None:
                self._stale.add(kernel.agent_id)
        # Whoever depends on it goes on, as if it had succeeded.
        for waiting in [s for s in self._pending.values() if session_id in s.waiting_for]:
            rest = tuple(other for other in waiting.waiting_for if other != session_id)
            self._pending[waiting.id] = replace(waiting, waiting_for=rest)

    def preempt(self, preemption: Preemption) -> None:
        """End a session at once: how long that takes is nothing beside how long sessions run."""
        kernels = self._kernels.get(preemption.victim, {})
        self._some_ended = True
        again = next((kernel.restarts_as for kernel in kernels.values()), None)
        self.end(preemption.victim)
        if preemption.reschedule and again is not None:
            self._pending[again.id] = again
            in_order = sorted(self._pending.values(), key=_BY_SUBMISSION)
            self._pending = {session.id: session for session in in_order}

    def advance(self, next_at: float | None) -> bool:
        """Go on to the next moment at which something happens; return whether there is one."""
        starts = (s.starts_at for s in self._pending.values() if s.starts_at is not None)
        coming = [at for at in (*starts, next_at) if at is not None and at > self.now]
        coming += [self._ends[0][0]] if self._ends else []
        if not coming or not self._pending:
            return False
        self.now = max(self.now, min(coming))
        while self._ends and self._ends[0][0] <= self.now:
            ended = heappop(self._ends)[1]
            self.end(ended)
            self._some_ended = True
            self._on_prediction |= ended in self._predicted
        return True

    def start_now(self) -> StartEstimate:
        """Return the estimate of a session that is placed at this moment."""
        if self.now <= self._begun_at and self._some_ended:
            message = "as soon as sessions are gone that are being ended"
            return StartEstimate(basis=StartBasis.ENDING, at=self.now, message=message)
        if self.now <= self._begun_at:
            return StartEstimate(basis=StartBasis.NOW, at=self.now, message="there is room for it now")
        if not self._some_ended:
            message = f"at {_clock(self.now)}, when a start time comes"
            return StartEstimate(basis=StartBasis.START_TIME, at=self.now, message=message)
        if self._on_prediction:
            message = f"at about {_clock(self.now)}, if sessions run as long as the last ones of their owners did"
            return StartEstimate(basis=StartBasis.PREDICTED, at=self.now, message=message)
        message = f"at {_clock(self.now)} at the latest, if sessions end at their time limits and none comes before it"
        return StartEstimate(basis=StartBasis.TIME_LIMITS, at=self.now, message=message)

    def why_not_known(self, session_id: SessionId) -> StartEstimate:
        """Return why a session has no place when all that can end has ended."""
        return StartEstimate(basis=StartBasis.UNKNOWN, message=self._obstacle(self._pending.get(session_id)))

    def _obstacle(self, session: PendingSession | None) -> str:
        if session is not None and session.waiting_for:
            return f"when session {session.waiting_for[0]}, for which it waits, ends is not known"
        endless = sorted(self._kernels)
        if not endless:
            return "there is no place for it even when all that runs has ended"
        named = ", ".join(endless[:3]) + (f" and {len(endless) - 3} more" if len(endless) > 3 else "")
        what = "session" if len(endless) == 1 else "sessions"
        return f"it depends on when {what} {named} will end; neither a time limit nor an earlier session tells"

    def _will_end(self, session_id: SessionId, kernel: RunningKernel) -> None:
        if kernel.time_limit_s is not None and kernel.time_limit_s < _FOR_EVER_S:
            # One that is past its limit is being ended.
            self._end_at(session_id, max(self.now, kernel.placed_at + kernel.time_limit_s))
        elif kernel.expected_s is not None:
            self._predicted.add(session_id)
            self._end_at(session_id, kernel.placed_at + _revised(kernel.expected_s, self.now - kernel.placed_at))

    def _end_at(self, session_id: SessionId, at: float) -> None:
        heappush(self._ends, (at, session_id))


def _revised(expected_s: float, elapsed_s: float) -> float:
    """Return how long a session will run that runs already: what has proved too little is doubled."""
    expected_s = max(1.0, expected_s)
    while expected_s <= elapsed_s:
        expected_s *= 2
    return expected_s


def never_as_things_are(code: RefusalCode, message: str) -> StartEstimate | None:
    """Return the estimate of a session that no other's end can help; ``None``: another's end may."""
    if code not in NEVER_AS_THINGS_ARE:
        return None
    return StartEstimate(basis=StartBasis.UNKNOWN, message=f"not before the nodes change: {message}")


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

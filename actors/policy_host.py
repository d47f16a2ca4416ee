"""The policy actor of one resource group: a warm world, and a policy that decides on it.

A policy is other people's code. One that raises, hangs or answers nonsense costs its own plan and nothing more:
``fifo`` decides in its place, the warning is logged and comes with the plan and with every explanation.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from backendai_ray.core.errors import InternalError, InvalidParameter, PolicyStuck, SessionNotFound, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import AgentId, ResourceGroupName, SessionId
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import (
    Changes,
    NodeChanged,
    PendingSession,
    Placement,
    Plan,
    Refusal,
    SchedulingPolicy,
    Snapshot,
)
from backendai_ray.plugins import load_policy
from policies.checking import Checked, check, rest_of
from policies.columns import RoomCache
from policies.consolidation import propose
from policies.explaining import explanation_of
from policies.fifo import FifoPolicy
from policies.mirror import Mirror
from policies.preemption_options import ConsolidationOptions
from policies.selection import Concentrated

from .contained import Hung, run_contained
from .foresight import Foresight

log = structlog.get_logger()

T = TypeVar("T")

DECIDE_TIMEOUT_S = 10.0
"""How long a policy may think about one plan."""
QUARANTINE_S = 60.0
"""How long a policy that hung is not asked again."""
RESOLVE_TIMEOUT_S = 10.0
"""How long the reading of a node's report may take; it comes from the object store."""

_PROBLEMS_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Configuration:
    policy: str
    selection: str
    options: Mapping[str, Any]
    standing_in: str = ""
    """Why this one decides in place of another; empty when it does not."""


class PolicyHost:
    """Decides for one resource group; it holds nothing that the Manager cannot send again."""

    def __init__(
        self,
        group: ResourceGroupName,
        *,
        resolve: Callable[[object], Awaitable[NodeReport]],
        decide_timeout_s: float = DECIDE_TIMEOUT_S,
        quarantine_s: float = QUARANTINE_S,
        load: Callable[[str, str, Mapping[str, Any]], SchedulingPolicy] = load_policy,
        clock: Callable[[], float] = time.monotonic,
        after_world: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a host with an empty world and the policy ``fifo``.

        Args:
            group: The resource group.
            resolve: Reads the report that a change carries; raises when it is lost.
            decide_timeout_s: How long a policy may think about one plan.
            quarantine_s: How long a policy that hung is not asked again.
            load: Makes a policy from its name, selection and options.
            clock: Monotonic seconds.
            after_world: Called when a whole world was taken in.
        """
        self._group = group
        self._resolve = resolve
        self._decide_timeout_s = decide_timeout_s
        self._quarantine_s = quarantine_s
        self._load = load
        self._clock = clock
        self._mirror = Mirror(group)
        self._rooms = RoomCache()
        self._wanted = _Configuration("fifo", "concentrated", {})
        self._policy: SchedulingPolicy | None = _fifo()
        self._fallback = _fifo()
        self._usable = True
        self._quarantined_until = 0.0
        self._stuck: threading.Thread | None = None
        """The thread in which the policy hung last."""
        self._is_spoilt = False
        self._after_world = after_world
        self._foresight = Foresight(group, load=load)
        self._foresight.configure("fifo", "concentrated", {})
        self._lock = asyncio.Lock()
        self.warning = ""
        """Why ``fifo`` decides instead of the policy that is configured; empty when it does not."""

    async def position(self) -> tuple[str, int]:
        """Return ``(incarnation, upto)`` of the world held; the incarnation is empty when none is."""
        return self._mirror.incarnation, self._mirror.upto

    async def configure(
        self, policy: str, selection: str, options: Mapping[str, Any], *, standing_in: str = ""
    ) -> None:
        """Switch the policy without losing the queue; repeating it changes nothing.

        Args:
            policy: The policy's name.
            selection: The agent selection's name.
            options: The policy's options.
            standing_in: Why it decides in place of another; comes as a warning with every plan.

        Raises:
            InvalidParameter: there is no such policy, selection or option; ``fifo`` decides until there is.
        """
        async with self._lock:
            wanted = _Configuration(policy, selection, dict(options), standing_in)
            if wanted == self._wanted and self._usable:
                return
            self._wanted = wanted
            self._foresight.configure(policy, selection, dict(options))
            self._quarantined_until = 0.0
            try:
                self._policy = await self._make()
            except InvalidParameter as exc:
                self._policy = None
                self._foresight.configure("fifo", "concentrated", {})
                self._warn(f"policy {policy} cannot be used ({exc.message}); fifo decides until it can")
                raise
            self._warn("")

    async def decide(self, changes: Changes, now: float) -> Plan | None:
        """Take the changes in and return a plan; ``None`` asks for the whole world (numbers do not join up)."""
        async with self._lock:
            if not self._mirror.joins(changes):
                return None
            reports = await self._reports(changes)
            self._mirror.take(changes, reports)
            if changes.full:
                self._after_world()
            snapshot = self._mirror.snapshot(now)
            plan = await self._plan(snapshot)
            starts = [at for at in (plan.next_at, self._mirror.next_start(now)) if at is not None]
            if self._is_spoilt:  # a thread that goes on might still change what it was given
                self._mirror, self._is_spoilt = Mirror(self._group), False
            return replace(plan, next_at=min(starts, default=None), warning=self.warning)

    async def explain(self, session_id: SessionId, now: float) -> Explanation:
        """Return why a pending session waits, or where it goes, and when it may start.

        Raises:
            SessionNotFound: it is not pending in the world held.
        """
        async with self._lock:
            snapshot = self._mirror.snapshot(now)
            session = next((session for session in snapshot.pending if session.id == session_id), None)
            if session is None:
                raise SessionNotFound(f"session {session_id} is not waiting", session_id=session_id)
            explanation = await self._explained(snapshot, session)
            world = self._mirror.incarnation, self._mirror.upto
        return await self._with_estimate(explanation, snapshot, session, world)

    async def rehearse(self, session: PendingSession, now: float) -> Explanation:
        """Return what would become of a session if it were submitted now; nothing remembers that it was asked."""
        async with self._lock:
            snapshot = self._mirror.snapshot(now)
            snapshot = replace(snapshot, pending=(*snapshot.pending, replace(session, submitted_at=now)))
            explanation = await self._explained(snapshot, session)
        return await self._with_estimate(explanation, snapshot, session, None)

    async def propose_moves(self, request: MoveRequest, now: float) -> Proposal:
        """Return the moves of running sessions that would let a waiting one start, checked like any plan.

        Raises:
            SessionNotFound: it is not pending in the world held.
            InvalidParameter: the search for so many moves took too long.
        """
        async with self._lock:
            snapshot = self._mirror.snapshot(now)
        session = next((session for session in snapshot.pending if session.id == request.session_id), None)
        if session is None:
            raise SessionNotFound(f"session {request.session_id} is not waiting", session_id=request.session_id)
        search = partial(_proposed, snapshot, session, request)
        try:  # on a snapshot of its own, beside the passes
            return await run_contained(search, self._decide_timeout_s, name=f"moves-{self._group}")
        except Hung:
            message = f"max_moves: the search for up to {request.max_moves} moves took too long; ask for fewer"
            raise InvalidParameter(message, field="max_moves") from None

    async def _explained(self, snapshot: Snapshot, session: PendingSession) -> Explanation:
        outcome = await self._explanation(snapshot, session.id)
        if isinstance(outcome, Refusal) and self.warning:
            outcome = replace(outcome, message=f"{outcome.message} ({self.warning})")
        in_detail = partial(explanation_of, snapshot, session, outcome, self._rooms)
        explanation = await self._contained(in_detail)
        return replace(explanation, policy=self._wanted.policy, warning=self.warning)

    async def _with_estimate(
        self, explanation: Explanation, snapshot: Snapshot, session: PendingSession, world: object
    ) -> Explanation:
        estimate = await self._foresight.start_of(session.id, explanation.outcome, snapshot, world)
        return replace(explanation, estimate=estimate)

    # ── deciding, contained ───────────────────────────────────────────────────────────────────────────────────────

    async def _plan(self, snapshot: Snapshot) -> Plan:
        policy = await self._trusted()
        if policy is not None:
            try:
                checked = await self._contained(partial(self._decided, policy, snapshot))
            except Hung:
                self._quarantine()
            except Exception as exc:  # noqa: BLE001 - a policy is other people's code
                self._fault(f"{type(exc).__name__}: {exc}", exc)
            else:
                if not checked.problems:
                    self._warn("")
                    return checked.sound
                self._fault(f"its plan cannot be carried out in full: {_first_of(checked.problems)}")
                return await self._completed(snapshot, checked.sound)
        return await self._contained(partial(self._fallback.decide, snapshot))

    async def _completed(self, snapshot: Snapshot, sound: Plan) -> Plan:
        """Keep what is good of a plan, and let ``fifo`` decide on those whom it does not answer then."""
        if sound.preemptions:
            return sound  # room is being made, which fifo would take away again
        rest = await self._contained(partial(self._fallback.decide, rest_of(snapshot, sound)))
        return replace(
            sound, placements=(*sound.placements, *rest.placements), refusals=(*sound.refusals, *rest.refusals)
        )

    async def _explanation(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        policy = await self._trusted()
        if policy is not None:
            try:
                outcome: object = await self._contained(partial(policy.explain, snapshot, session_id))
            except Hung:
                self._quarantine()
            except Exception as exc:  # noqa: BLE001 - a policy is other people's code
                self._fault(f"{type(exc).__name__}: {exc}", exc)
            else:
                if isinstance(outcome, Refusal | Placement) and outcome.session_id == session_id:
                    return outcome
                self._fault(f"it explained with {type(outcome).__name__}")
        return await self._contained(partial(self._fallback.explain, snapshot, session_id))

    def _decided(self, policy: SchedulingPolicy, snapshot: Snapshot) -> Checked:
        plan: object = policy.decide(snapshot)
        if not isinstance(plan, Plan):
            raise TypeError(f"it is no Plan but {type(plan).__name__}")
        return check(snapshot, plan, self._rooms.open(snapshot.nodes))

    async def _contained(self, call: Callable[[], T]) -> T:
        try:
            return await run_contained(call, self._decide_timeout_s, name=f"policy-{self._group}")
        except (Hung, asyncio.CancelledError) as exc:
            if isinstance(exc, Hung):
                self._stuck = exc.thread
            # The thread may go on for a while with what it had; nobody else may use that.
            self._rooms, self._fallback = RoomCache(), _fifo()
            self._policy = None
            self._is_spoilt = True
            raise

    async def _trusted(self) -> SchedulingPolicy | None:
        """Return the policy; ``None`` while it is in quarantine or cannot be made.

        Raises:
            PolicyStuck: its quarantine is over, and the thread in which it hung still runs.
        """
        if self._policy is None and self._usable and self._clock() >= self._quarantined_until:
            if self._stuck is not None and self._stuck.is_alive():
                raise PolicyStuck(f"policy {self._wanted.policy} of {self._group} hangs where it cannot be stopped")
            self._stuck = None
            try:
                self._policy = await self._make()
            except InvalidParameter as exc:
                self._fault(exc.message)
        return self._policy

    async def _make(self) -> SchedulingPolicy:
        wanted = self._wanted
        self._usable = False
        try:
            made = await self._contained(partial(self._load, wanted.policy, wanted.selection, wanted.options))
        except Hung:
            raise InvalidParameter(f"policy: {wanted.policy!r} cannot be made: it hangs", field="policy") from None
        except InvalidParameter:
            raise
        except Exception as exc:
            raise InvalidParameter(f"policy: {wanted.policy!r} cannot be made: {exc}", field="policy") from exc
        self._usable = True
        return made

    def _quarantine(self) -> None:
        self._quarantined_until = self._clock() + self._quarantine_s
        self._fault(f"it did not answer within {self._decide_timeout_s:g} s")

    def _fault(self, what: str, exc: Exception | None = None) -> None:
        self._warn(f"policy {self._wanted.policy} failed ({what}); fifo decides in its place", exc)

    def _warn(self, warning: str, exc: Exception | None = None) -> None:
        warning = warning or self._wanted.standing_in
        if warning == self.warning:
            return
        self.warning = warning
        if warning:
            log.warning("policy.failed", group=self._group, warning=warning, exc_info=exc)
        else:
            log.info("policy.in_force", group=self._group, policy=self._wanted.policy)

    # ── reading reports ───────────────────────────────────────────────────────────────────────────────────────────

    async def _reports(self, changes: Changes) -> dict[AgentId, NodeReport]:
        """Read the last report of every node that changed; one that cannot be read is left out."""
        last = {one.agent_id: one for one in self._mirror.news_in(changes) if isinstance(one, NodeChanged)}
        found = await asyncio.gather(*(self._report(change) for change in last.values()))
        return {agent_id: report for agent_id, report in zip(last, found, strict=True) if report is not None}

    async def _report(self, change: NodeChanged) -> NodeReport | None:
        if isinstance(change.report, NodeReport):
            return change.report
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                return await self._resolve(change.report)
        except (TimeoutError, Unavailable, TypeError) as exc:
            log.warning("policy.report_lost", group=self._group, agent_id=change.agent_id, error=str(exc))
            return None


def _proposed(snapshot: Snapshot, session: PendingSession, request: MoveRequest) -> Proposal:
    bounds = ConsolidationOptions(
        max_moves=request.max_moves, min_runtime_s=request.min_runtime_s, grace_s=request.grace_s
    )
    proposal = propose(snapshot, session, bounds, lambda one: request.owner in (None, one.access_key))
    problems = check(snapshot, proposal.plan).problems
    if problems:
        raise InternalError(f"the moves that were found cannot be carried out: {problems[0]}")
    return proposal


def _first_of(problems: Sequence[str]) -> str:
    more = len(problems) - _PROBLEMS_NAMED
    return "; ".join(problems[:_PROBLEMS_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _fifo() -> SchedulingPolicy:
    return FifoPolicy(selection=Concentrated())

"""Carrying out a plan: every line is checked against the present, and what still fits is committed at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import KernelId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import Effect, Placed, StatusChange, step
from backendai_ray.core.scheduling import Applied, Placement, Plan, Rejection
from backendai_ray.core.sessions import Session, Status
from backendai_ray.store import Batch

from .chronicle import Chronicle
from .journal import Journal
from .orders import Orders
from .ports import Clock
from .preempting import Preempting
from .world import World

log = structlog.get_logger()


@dataclass(slots=True)
class _Accepted:
    """The lines of a plan that hold devices already and wait for their common commit."""

    moves: list[tuple[Session, Session, tuple[Effect, ...]]] = field(default_factory=list)
    changes: list[StatusChange] = field(default_factory=list)
    sessions: set[SessionId] = field(default_factory=set)

    def batch(self) -> Batch:
        return Batch(sessions=tuple(after for _, after, _ in self.moves), changes=tuple(self.changes))

    def kernels(self) -> list[KernelId]:
        return [kernel.id for _, after, _ in self.moves for kernel in after.kernels]


class Placing:
    """Applies plans. A gang is placed whole or not at all; a rejected line costs only itself."""

    def __init__(self, world: World, journal: Journal, orders: Orders, chronicle: Chronicle, clock: Clock) -> None:
        self._world = world
        self._journal = journal
        self._orders = orders
        self._chronicle = chronicle
        self._clock = clock
        self._preempting = Preempting(world, journal, orders, clock)

    async def apply(self, group: ResourceGroupName, plan: Plan, pass_id: str) -> Applied:
        """Commit what still fits, and order the kernels: one call per agent.

        Raises:
            StoreUnavailable: nothing was placed; what was held for it is free again.
        """
        return await asyncio.shield(self._apply(group, plan, pass_id))

    async def _apply(self, group: ResourceGroupName, plan: Plan, pass_id: str) -> Applied:
        for refusal in plan.refusals:
            if refusal.session_id in self._world.book.live:
                self._world.notes[refusal.session_id] = refusal.message
        self._chronicle.refused(plan.refusals, pass_id)
        rejected: list[Rejection] = []
        async with self._journal.exclusively(placement.session_id for placement in plan.placements):
            accepted = _Accepted()
            for placement in plan.placements:
                why = self._accept(group, placement, pass_id, accepted)
                if why:
                    log.info("placement.rejected", session_id=placement.session_id, why=why, cause=pass_id)
                    rejected.append(Rejection(placement.session_id, why))
            placed = await self._commit(accepted)
        self._chronicle.rejected(rejected, pass_id)
        preempted: list[SessionId] = []
        if not rejected:  # else there is more room than the plan knew of, and the next one may need no victim
            preempted, rejected = await self._preempting.carry_out(group, plan, pass_id)
        return Applied(
            placed=placed,
            rejected=tuple(rejected),
            upto=self._world.log(group).upto,
            preempted=tuple(preempted),
        )

    def _accept(self, group: ResourceGroupName, placement: Placement, pass_id: str, accepted: _Accepted) -> str:
        """Hold devices for a line and add it to the commit; returns the sentence that says why not."""
        session = self._world.book.live.get(placement.session_id)
        if session is None or session.id in accepted.sessions:
            return "the session does not wait any more"
        why = self._objection(group, session, placement) or self._world.ledger.hold_all(placement.kernels)
        if why:
            return why
        self._world.allowances.hold(session, (kernel.kernel_id for kernel in placement.kernels))
        where = {kernel.kernel_id: (kernel.agent_id, kernel.allocation) for kernel in placement.kernels}
        outcome = step(session, Placed(cause=pass_id, now=self._clock(), where=where))
        accepted.sessions.add(session.id)
        accepted.moves.append((session, outcome.session, outcome.effects))
        accepted.changes.extend(outcome.changes)
        return ""

    def _objection(self, group: ResourceGroupName, session: Session, placement: Placement) -> str:
        spec = session.spec
        if spec.resource_group != group:
            return f"the session belongs to the resource group {spec.resource_group}"
        if session.status is not Status.PENDING:
            return f"the session is {session.status} already"
        if session.version != placement.version:
            return "the session has changed since the plan was made"
        if self._world.waiting.unmet(session.id):
            return "the session still waits for others"
        if spec.starts_at is not None and spec.starts_at > self._clock():
            return "the session's start time has not come"
        if breach := self._world.allowances.breach(spec):
            return str(breach)
        if sorted(k.kernel_id for k in placement.kernels) != sorted(k.id for k in session.kernels):
            return "the plan does not place exactly the session's kernels"
        for kernel in placement.kernels:
            node = self._world.nodes.get(kernel.agent_id)
            if node is None or node.group != group:
                return f"{kernel.agent_id} is no node of the group"
            if why_not := node.unschedulable():
                return f"{kernel.agent_id}: {why_not}"
            if not spec.slots.fits_in(kernel.allocation.slots()):
                return f"the plan gives kernel {kernel.kernel_id} less than it asked for"
        return ""

    async def _commit(self, accepted: _Accepted) -> tuple[SessionId, ...]:
        if not accepted.moves:
            return ()
        try:
            await self._journal.commit(accepted.batch())
        except BackendError as exc:
            if exc.details.get("outcome") != "unknown":  # else the journal releases them once it has made sure
                self._release(accepted)
            raise
        except BaseException:
            self._release(accepted)
            raise
        for before, after, effects in accepted.moves:
            self._journal.take_effect(before, after)
            self._orders.carry_out(after, effects)
        return tuple(after.id for _, after, _ in accepted.moves)

    def _release(self, accepted: _Accepted) -> None:
        for kernel_id in accepted.kernels():
            self._world.ledger.release(kernel_id)
        self._world.allowances.free(accepted.kernels())

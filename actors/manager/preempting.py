"""Making room: sessions that run are ended (and perhaps put back into the queue) so that another one can start.

Everything about one beneficiary is one commit: its victims begin to end, and the place that becomes free is written
down in its record, so that it is kept for it whatever crashes meanwhile. A line that does not fit the present any more
costs all the others of its beneficiary, because nobody is to be ended in vain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import Effect, Nominated, PreemptRequested, StatusChange, step
from backendai_ray.core.scheduling import Placement, Plan, Preemption, Rejection
from backendai_ray.core.sessions import Place, Session, SessionType, Status
from backendai_ray.store import Batch

from .journal import Journal
from .orders import Orders
from .ports import Clock
from .views import holds_devices
from .world import World

log = structlog.get_logger()


class Preempting:
    """Carries out the preemptions of plans."""

    def __init__(self, world: World, journal: Journal, orders: Orders, clock: Clock) -> None:
        self._world = world
        self._journal = journal
        self._orders = orders
        self._clock = clock

    async def carry_out(
        self, group: ResourceGroupName, plan: Plan, pass_id: str
    ) -> tuple[list[SessionId], list[Rejection]]:
        """Begin to end the victims of every beneficiary for which that still makes the room.

        Returns:
            The victims, and why others were left alone, by beneficiary.

        Raises:
            StoreUnavailable: the victims of one beneficiary could not be committed; they are left alone.
        """
        places = {placement.session_id: placement for placement in plan.nominations}
        victims: dict[SessionId, list[Preemption]] = {}
        for preemption in plan.preemptions:
            victims.setdefault(preemption.beneficiary, []).append(preemption)
        ended: list[SessionId] = []
        rejected: list[Rejection] = []
        for beneficiary, lines in victims.items():
            why = await self._make_room(group, beneficiary, lines, places, pass_id)
            if why:
                log.info("preemption.rejected", session_id=beneficiary, why=why, cause=pass_id)
                rejected.append(Rejection(beneficiary, why))
            else:
                ended += [line.victim for line in lines]
        return ended, rejected

    async def _make_room(
        self,
        group: ResourceGroupName,
        beneficiary: SessionId,
        lines: Sequence[Preemption],
        places: Mapping[SessionId, Placement],
        pass_id: str,
    ) -> str:
        """Commit the end of one beneficiary's victims; returns the sentence that says why not."""
        async with self._journal.exclusively([beneficiary, *(line.victim for line in lines)]):
            why = self._objection(group, beneficiary, lines, places)
            if why:
                return why
            now = self._clock()
            moves: list[tuple[Session, Session, tuple[Effect, ...]]] = []
            changes: list[StatusChange] = []
            for line in lines:
                event = PreemptRequested(
                    cause=pass_id,
                    now=now,
                    beneficiary=beneficiary,
                    message=line.message,
                    reschedule=line.reschedule,
                    grace_s=line.grace_s,
                    next_place=_as_place(places.get(line.victim)),
                )
                victim = self._world.book.live[line.victim]
                outcome = step(victim, event)
                moves.append((victim, outcome.session, outcome.effects))
                changes.extend(outcome.changes)
            place = places.get(beneficiary)
            if place is not None:
                waiting = self._world.book.live[beneficiary]
                nominated = Nominated(cause=pass_id, now=now, where=_as_place(place))
                moves.append((waiting, step(waiting, nominated).session, ()))
            batch = Batch(sessions=tuple(after for _, after, _ in moves), changes=tuple(changes))
            await self._journal.commit(batch)
            for before, after, effects in moves:
                self._journal.take_effect(before, after)
                self._orders.carry_out(after, effects)
        return ""

    def _objection(
        self,
        group: ResourceGroupName,
        beneficiary: SessionId,
        lines: Sequence[Preemption],
        places: Mapping[SessionId, Placement],
    ) -> str:
        live = self._world.book.live
        waiting = live.get(beneficiary)
        if waiting is None or waiting.status is not Status.PENDING or waiting.spec.resource_group != group:
            return "the session that the room is for does not wait in this group"
        if beneficiary in places and places[beneficiary].version != waiting.version:
            return "the session that the room is for has changed since the plan was made"
        if any(_ends_for(session, beneficiary) for session in live.values()):
            return "room is being made for it already"
        if len({line.victim for line in lines}) < len(lines):
            return "a session is preempted twice"
        for line in lines:
            victim = live.get(line.victim)
            if victim is None or victim.spec.resource_group != group:
                return f"session {line.victim} does not run in this group"
            why = _why_not(victim, waiting, line, is_moved=line.victim in places)
            if why:
                return f"session {line.victim} {why}"
        return self._why_no_room(beneficiary, lines, places)

    def _why_no_room(
        self, beneficiary: SessionId, lines: Sequence[Preemption], places: Mapping[SessionId, Placement]
    ) -> str:
        """Return why the places are not free once the victims, and what is being ended anyway, are gone."""
        wanted = [places[name] for name in (beneficiary, *(line.victim for line in lines)) if name in places]
        live = self._world.book.live
        leaving = {line.victim for line in lines}
        leaving.update(session.id for session in live.values() if session.status is Status.TERMINATING)
        gone = {kernel.id for name in leaving for kernel in live[name].kernels if holds_devices(kernel)}
        for agent_id in {kernel.agent_id for placement in wanted for kernel in placement.kernels}:
            node = self._world.nodes.get(agent_id)
            if node is None or node.unschedulable():
                return f"{agent_id} takes no new sessions"
        return self._world.ledger.would_hold([kernel for place in wanted for kernel in place.kernels], gone)


def _ends_for(session: Session, beneficiary: SessionId) -> bool:
    return (
        session.status is Status.TERMINATING
        and session.eviction is not None
        and session.eviction.beneficiary == beneficiary
    )


def _why_not(victim: Session, waiting: Session, line: Preemption, *, is_moved: bool) -> str:
    """Return why a session may not be ended for another one."""
    if victim.status in (Status.PENDING, Status.TERMINATING):
        return f"is {victim.status} already"
    if victim.spec.type is SessionType.SYSTEM:
        return "belongs to the system"
    mine, yours = victim.spec.priority, waiting.spec.priority
    if mine > yours or (mine == yours and not (is_moved and line.reschedule)):
        return f"has the priority {mine}, the one that waits only {yours}"
    if line.reschedule and not victim.spec.may_requeue:
        return "cannot be put back into the queue"
    return ""


def _as_place(placement: Placement | None) -> Place:
    if placement is None:
        return {}
    return {kernel.kernel_id: (kernel.agent_id, kernel.allocation) for kernel in placement.kernels}

"""Is a plan one that could be carried out? What the policy actor asks of every plan before it passes it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import (
    PendingSession,
    Placement,
    Plan,
    Preemption,
    Refusal,
    RunningKernel,
    Snapshot,
)

from .columns import Room, RoomCache
from .quotas import QuotaBook


def problems_of(snapshot: Snapshot, plan: Plan, room: Room | None = None) -> tuple[str, ...]:
    """Return what is wrong with a plan, a sentence for each line that is; empty when nothing is.

    A session must be placed once, whole, at the version that was looked at, on nodes that take new sessions, with
    exactly what it asks for, on devices that are free, and within the quotas. A session may be preempted for a waiting
    one of a higher priority (or be moved for one of its own), once, and if it can be; the places nominated must be free
    once the preempted sessions, and those that are being ended anyway, are gone.

    Args:
        snapshot: What was decided on.
        plan: What was decided.
        room: An untouched room on the snapshot's nodes, if there is one at hand.
    """
    pending = {session.id: session for session in snapshot.pending}
    room = room or RoomCache().open(snapshot.nodes)
    rows = {node.agent_id: row for row, node in enumerate(room.nodes)}
    maps: dict[AgentId, DeviceMap] = {}
    quotas = QuotaBook(snapshot.quotas, snapshot.running)
    seen: set[SessionId] = set()
    problems: list[str] = []
    for placement in plan.placements:
        problem = _shape(placement, pending.get(placement.session_id), placement.session_id in seen)
        problem = problem or _over_quota(pending[placement.session_id], quotas)
        problem = problem or _devices(placement, pending[placement.session_id], room, rows, maps)
        if problem:
            problems.append(f"session {placement.session_id}: {problem}")
        seen.add(placement.session_id)
    if plan.preemptions or plan.nominations:
        placed = {agent: maps.get(agent) or room.map(row) for agent, row in rows.items()}
        problems += _preemptions(snapshot, plan, room, placed)
    for refusal in plan.refusals:
        if refusal.session_id in seen or refusal.session_id not in pending:
            problems.append(f"session {refusal.session_id}: refused, but placed or refused before, or not waiting")
        seen.add(refusal.session_id)
    return tuple(problems)


def _preemptions(snapshot: Snapshot, plan: Plan, room: Room, maps: Mapping[AgentId, DeviceMap]) -> Iterator[str]:
    """Say what is wrong with the preemptions and the places nominated; ``maps`` as they are after the placements."""
    placed = {placement.session_id for placement in plan.placements}
    waiting = {session.id: session for session in snapshot.pending if session.id not in placed}
    running: dict[SessionId, list[RunningKernel]] = {}
    for kernel in snapshot.running:
        running.setdefault(kernel.session_id, []).append(kernel)
    places = {placement.session_id: placement for placement in plan.nominations}
    victims = Counter(line.victim for line in plan.preemptions)
    for line in plan.preemptions:
        problem = _why_not_preempted(line, running.get(line.victim, []), waiting.get(line.beneficiary), places)
        if victims[line.victim] > 1:
            problem = "is preempted twice"
        if problem:
            yield f"preemption: session {line.victim} {problem}"
    gone = {kernel.kernel_id for name in victims for kernel in running.get(name, [])}
    gone |= {kernel.kernel_id for kernel in snapshot.running if kernel.ending}
    rows = {node.agent_id: row for row, node in enumerate(room.nodes)}
    later: dict[AgentId, DeviceMap] = {}
    for placement in plan.nominations:
        asked = waiting.get(placement.session_id)
        if asked is None and placement.session_id in victims:
            asked = next((kernel.restarts_as for kernel in running.get(placement.session_id, [])), None)
        for agent_id in {kernel.agent_id for kernel in placement.kernels} & maps.keys() - later.keys():
            later[agent_id] = _without(maps[agent_id], gone)
        problem = _shape(placement, asked, again=False)
        if asked is not None and not problem:
            problem = _devices(placement, asked, room, rows, later)
        if problem:
            yield f"nomination: session {placement.session_id}: {problem}"


def _why_not_preempted(
    line: Preemption,
    victim: Sequence[RunningKernel],
    beneficiary: PendingSession | None,
    places: Mapping[SessionId, Placement],
) -> str:
    if not victim:
        return "is not running"
    one = victim[0]
    if beneficiary is None:
        return f"is ended for session {line.beneficiary}, which does not wait"
    if not one.preemptible or any(kernel.ending for kernel in victim):
        return "may not be ended, or is being ended already"
    if line.reschedule and one.restarts_as is None:
        return "cannot be put back into the queue"
    is_moved = line.reschedule and line.victim in places
    if one.priority > beneficiary.priority or (one.priority == beneficiary.priority and not is_moved):
        return f"has priority {one.priority}, session {beneficiary.id} only {beneficiary.priority}"
    return ""


def _without(one: DeviceMap, gone: Collection[KernelId]) -> DeviceMap:
    later = one.copy()
    for kernel_id in [name for name in later.held if name in gone]:
        later.release(kernel_id)
    return later


def _shape(placement: Placement, session: PendingSession | None, again: bool) -> str:
    if session is None:
        return "is placed, but is not waiting"
    if again:
        return "is placed twice"
    if placement.version != session.version:
        return f"was looked at in version {placement.version}, not {session.version}"
    if [kernel.kernel_id for kernel in placement.kernels] != list(session.kernel_ids):
        return "not all of its kernels are placed, in order, once each"
    return ""


def _over_quota(session: PendingSession, quotas: QuotaBook) -> str:
    refusal = quotas.refusal(session)
    if refusal is None:
        quotas.take(session)
    return "" if refusal is None else refusal.message


def _devices(
    placement: Placement,
    session: PendingSession,
    room: Room,
    rows: Mapping[AgentId, int],
    maps: dict[AgentId, DeviceMap],
) -> str:
    held: list[tuple[AgentId, KernelId]] = []
    problem = ""
    for kernel in placement.kernels:
        row = rows.get(kernel.agent_id)
        if row is None or room.nodes[row].unschedulable:
            problem = f"node {kernel.agent_id} is not there or takes no new sessions"
        elif kernel.allocation.slots() != session.slots:
            problem = f"kernel {kernel.kernel_id} gets {kernel.allocation.slots()!r}, not {session.slots!r}"
        else:
            if kernel.agent_id not in maps:
                maps[kernel.agent_id] = room.map(row).copy()
            try:
                maps[kernel.agent_id].hold(kernel.kernel_id, kernel.allocation)
                held.append((kernel.agent_id, kernel.kernel_id))
            except Conflict as conflict:
                problem = f"on node {kernel.agent_id}, {conflict.message}"
        if problem:
            break
    if problem:
        for agent_id, kernel_id in held:
            maps[agent_id].release(kernel_id)
    return problem


def without_answer(snapshot: Snapshot, plan: Plan) -> tuple[SessionId, ...]:
    """Return the pending sessions that a plan neither places nor refuses."""
    lines: tuple[Placement | Refusal, ...] = (*plan.placements, *plan.refusals)
    answered = {line.session_id for line in lines}
    return tuple(session.id for session in snapshot.pending if session.id not in answered)

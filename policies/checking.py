"""Is a plan one that could be carried out? What the policy actor asks of every plan before it passes it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import (
    Node,
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

_SLACK = 100

L = TypeVar("L", Placement, Refusal)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a plan is worth."""

    sound: Plan
    """The plan with its good lines only; of preemptions and nominations, which hang together, all or none."""
    problems: tuple[str, ...]
    """A sentence for each line that is wrong."""


def problems_of(snapshot: Snapshot, plan: Plan, room: Room | None = None) -> tuple[str, ...]:
    """Return what is wrong with a plan, a sentence for each line that is; empty when nothing is."""
    return check(snapshot, plan, room).problems


def check(snapshot: Snapshot, plan: Plan, room: Room | None = None) -> Checked:
    """Judge a plan line by line; whatever a line is, it costs only itself.

    A session must be placed once, whole, at the version that was looked at, on nodes that take new sessions, with
    exactly what it asks for, on devices that are free, and within the quotas. A session may be preempted for a waiting
    one of a higher priority (or be moved for one of its own), once, and if it can be; the places nominated must be free
    once the preempted sessions, and those that are being ended anyway, are gone.

    Args:
        snapshot: What was decided on.
        plan: What was decided.
        room: An untouched room on the snapshot's nodes, if there is one at hand.
    """
    book = _Book(snapshot, room or RoomCache().open(snapshot.nodes))
    # A policy may answer with a million lines; more than these can only repeat each other.
    at_most = len(snapshot.pending) + _SLACK
    placements = book.good("placement", plan.placements, book.placement, at_most)
    makes_room = book.check_preemptions(replace(plan, placements=placements))
    refusals = book.good("refusal", plan.refusals, book.refusal, at_most)
    if not book.problems:
        return Checked(plan, ())
    sound = replace(plan, placements=placements, refusals=refusals)
    return Checked(sound if makes_room else replace(sound, preemptions=(), nominations=()), tuple(book.problems))


class _Book:
    """What the lines so far have taken."""

    def __init__(self, snapshot: Snapshot, room: Room) -> None:
        self.problems: list[str] = []
        self._snapshot = snapshot
        self._pending = {session.id: session for session in snapshot.pending}
        self._room = room
        self._rows = {node.agent_id: row for row, node in enumerate(room.nodes)}
        self._maps: dict[AgentId, DeviceMap] = {}
        self._quotas = QuotaBook(snapshot.quotas, snapshot.running)
        self._seen: set[SessionId] = set()

    def good(self, kind: str, lines: Sequence[L], problem_of: Callable[[L], str], at_most: int) -> tuple[L, ...]:
        """Return the lines in which no problem is found; the others are noted."""
        good: list[L] = []
        for line in lines[:at_most]:
            try:
                problem = problem_of(line)
            except Exception as exc:  # noqa: BLE001 - a line may be anything
                problem = f"{line!r:.80} is no {kind} ({type(exc).__name__}: {exc})"
            if problem:
                self.problems.append(problem)
            else:
                good.append(line)
        if len(lines) > at_most:
            self.problems.append(f"{len(lines)} {kind}s are more than there can be; all after {at_most} are left out")
        return tuple(good)

    def placement(self, placement: Placement) -> str:
        """Return what is wrong with a placement; what is right is taken note of."""
        session = self._pending.get(placement.session_id)
        problem = _shape(placement, session, placement.session_id in self._seen)
        if session is None or problem:
            return f"session {placement.session_id}: {problem}"
        over = self._quotas.refusal(session)
        problem = over.message if over is not None else _devices(placement, session, self._room, self._rows, self._maps)
        if problem:
            return f"session {session.id}: {problem}"
        self._quotas.take(session)
        self._seen.add(session.id)
        return ""

    def check_preemptions(self, plan: Plan) -> bool:
        """Return whether the preemptions and nominations are sound, all of them."""
        if not plan.preemptions and not plan.nominations:
            return True
        before = len(self.problems)
        placed = {agent: self._maps.get(agent) or self._room.map(row) for agent, row in self._rows.items()}
        try:
            self.problems += _preemptions(self._snapshot, plan, self._room, placed)
        except Exception as exc:  # noqa: BLE001 - a line may be anything
            self.problems.append(f"a preemption or nomination is none ({type(exc).__name__}: {exc})")
        return len(self.problems) == before

    def refusal(self, refusal: Refusal) -> str:
        """Return what is wrong with a refusal."""
        session_id = refusal.session_id
        if session_id in self._seen or session_id not in self._pending:
            return f"session {session_id}: refused, but placed or refused before, or not waiting"
        self._seen.add(session_id)
        return ""


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


def rest_of(snapshot: Snapshot, sound: Plan) -> Snapshot:
    """Return the world after the placements of a sound plan, in which those wait whom it does not answer."""
    sessions = {session.id: session for session in snapshot.pending}
    started = [
        _started(sessions[placement.session_id], placement, index, snapshot.now)
        for placement in sound.placements
        for index in range(len(placement.kernels))
    ]
    on: dict[AgentId, list[RunningKernel]] = {}
    for kernel in started:
        on.setdefault(kernel.agent_id, []).append(kernel)
    return replace(
        snapshot,
        pending=tuple(sessions[session_id] for session_id in without_answer(snapshot, sound)),
        running=(*snapshot.running, *started),
        nodes=tuple(_with(node, on.get(node.agent_id, ())) for node in snapshot.nodes),
    )


def _started(session: PendingSession, placement: Placement, index: int, now: float) -> RunningKernel:
    kernel = placement.kernels[index]
    return RunningKernel(
        kernel_id=kernel.kernel_id,
        session_id=session.id,
        agent_id=kernel.agent_id,
        access_key=session.access_key,
        project=session.project,
        domain=session.domain,
        allocation=kernel.allocation,
        priority=session.priority,
        placed_at=now,
        time_limit_s=session.time_limit_s,
        user=session.user,
    )


def _with(node: Node, kernels: Sequence[RunningKernel]) -> Node:
    if not kernels:
        return node
    return replace(node, held={**node.held, **{kernel.kernel_id: kernel.allocation for kernel in kernels}})


def without_answer(snapshot: Snapshot, plan: Plan) -> tuple[SessionId, ...]:
    """Return the pending sessions that a plan neither places nor refuses."""
    lines: tuple[Placement | Refusal, ...] = (*plan.placements, *plan.refusals)
    answered = {line.session_id for line in lines}
    return tuple(session.id for session in snapshot.pending if session.id not in answered)

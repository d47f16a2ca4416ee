"""Is a plan one that could be carried out? What the policy actor asks of every plan before it passes it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

L = TypeVar("L", Placement, Preemption, Refusal)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a plan is worth."""

    sound: Plan
    """The plan with its good lines only."""
    problems: tuple[str, ...]
    """A sentence for each line that was left out."""


def problems_of(snapshot: Snapshot, plan: Plan, room: Room | None = None) -> tuple[str, ...]:
    """Return what is wrong with a plan, a sentence for each line that is; empty when nothing is."""
    return check(snapshot, plan, room).problems


def check(snapshot: Snapshot, plan: Plan, room: Room | None = None) -> Checked:
    """Judge a plan line by line; whatever a line is, it costs only itself.

    A session must be placed once, whole, at the version that was looked at, on nodes that take new sessions, with
    exactly what it asks for, on devices that are free, and within the quotas.

    Args:
        snapshot: What was decided on.
        plan: What was decided.
        room: An untouched room on the snapshot's nodes, if there is one at hand.
    """
    book = _Book(snapshot, room or RoomCache().open(snapshot.nodes))
    running = {kernel.session_id for kernel in snapshot.running} if plan.preemptions else set()
    # A policy may answer with a million lines; more than these can only repeat each other.
    at_most = len(snapshot.pending) + _SLACK
    placements = book.good("placement", plan.placements, book.placement, at_most)
    preemptions = book.good(
        "preemption",
        plan.preemptions,
        lambda one: "" if one.victim in running else f"preemption: {one.victim} is not running",
        len(running) + _SLACK,
    )
    refusals = book.good("refusal", plan.refusals, book.refusal, at_most)
    if not book.problems:
        return Checked(plan, ())
    sound = replace(plan, placements=placements, preemptions=preemptions, refusals=refusals)
    if len(preemptions) < len(plan.preemptions):
        # Without all of its victims a session has no room, and without a session there is no need for victims.
        sound = replace(sound, preemptions=(), nominations=())
    return Checked(sound, tuple(book.problems))


class _Book:
    """What the lines so far have taken."""

    def __init__(self, snapshot: Snapshot, room: Room) -> None:
        self.problems: list[str] = []
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
        problem = over.message if over is not None else self._devices(placement, session)
        if problem:
            return f"session {session.id}: {problem}"
        self._quotas.take(session)
        self._seen.add(session.id)
        return ""

    def refusal(self, refusal: Refusal) -> str:
        """Return what is wrong with a refusal."""
        session_id = refusal.session_id
        if session_id in self._seen or session_id not in self._pending:
            return f"session {session_id}: refused, but placed or refused before, or not waiting"
        self._seen.add(session_id)
        return ""

    def _devices(self, placement: Placement, session: PendingSession) -> str:
        held: list[tuple[AgentId, KernelId]] = []
        problem = ""
        for kernel in placement.kernels:
            row = self._rows.get(kernel.agent_id)
            if row is None or self._room.nodes[row].unschedulable:
                problem = f"node {kernel.agent_id} is not there or takes no new sessions"
            elif kernel.allocation.slots() != session.slots:
                problem = f"kernel {kernel.kernel_id} gets {kernel.allocation.slots()!r}, not {session.slots!r}"
            else:
                if kernel.agent_id not in self._maps:
                    self._maps[kernel.agent_id] = self._room.map(row).copy()
                try:
                    self._maps[kernel.agent_id].hold(kernel.kernel_id, kernel.allocation)
                    held.append((kernel.agent_id, kernel.kernel_id))
                except Conflict as conflict:
                    problem = f"on node {kernel.agent_id}, {conflict.message}"
            if problem:
                break
        if problem:
            for agent_id, kernel_id in held:
                self._maps[agent_id].release(kernel_id)
        return problem


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

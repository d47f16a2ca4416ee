"""Preemption: sessions of a lower priority are ended so that a more important one can start.

Why this comes to an end. A session is ended only for one of a strictly higher priority, so no two can end each other in
turns, and each preemption serves a higher priority than it takes from. While sessions are being ended for a waiting
one, no more are chosen for it, and the place is kept for it from everybody of its priority or below. A session that
went back into the queue is safe for the minimum run time once it runs again.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

from backendai_ray.core.errors import Conflict, InvalidParameter
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession, Placement, Preemption, RunningKernel, Snapshot

from .candidates import Candidates, Eligible, request_of
from .columns import Room
from .kept_places import KeptPlaces
from .placing import place
from .selection import Concentrated
from .victims import Search, Victim, VictimTable

_RANKED = Concentrated()
"""What is made free is found whatever the selection; where the session goes in the end is the selection's choice."""
_MOST_PER_PASS = 16
"""For so many sessions room is made in one pass; the others have their turn in the next, which follows at once."""
_NAMED = 3
"""So many sessions are spelled out in a sentence."""


class Scope(StrEnum):
    """Whose sessions may be ended for one that waits."""

    OFF = "off"
    OWNER = "owner"
    """Those of the same access key."""
    PROJECT = "project"
    """Those of the same project of the same domain."""
    DOMAIN = "domain"
    GROUP = "group"
    """All of the resource group."""


class Mode(StrEnum):
    """What becomes of those that are ended."""

    RESCHEDULE = "reschedule"
    """They go back into the queue; sessions that do not allow that are left alone."""
    TERMINATE = "terminate"


_E = TypeVar("_E", Scope, Mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionOptions:
    """The option ``preemption`` of the queueing policies."""

    scope: Scope = Scope.OFF
    mode: Mode = Mode.RESCHEDULE
    min_runtime_s: float = 60.0
    """A session is left alone for so long after it was placed."""
    grace_s: float | None = None
    """How long processes have between the notice and the kill; ``None``: as at any end of a session."""

    @classmethod
    def parse(cls, given: object) -> PreemptionOptions:
        """Read the option; ``None``: nobody is ended for anybody.

        Raises:
            InvalidParameter: it is no mapping, or a field of it is missing, unknown or wrong.
        """
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise _wrong("", f"{given!r} is no mapping; give for example {{scope: group}}")
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise _wrong(f".{name}", f"there is no such option; there are {', '.join(known)}")
        return cls(
            scope=_one_of(Scope, given.get("scope"), "scope"),
            mode=_one_of(Mode, given.get("mode", Mode.RESCHEDULE), "mode"),
            min_runtime_s=_seconds(given.get("min_runtime_s", 60.0), "min_runtime_s"),
            grace_s=None if given.get("grace_s") is None else _seconds(given["grace_s"], "grace_s"),
        )


def _one_of(kind: type[_E], value: object, name: str) -> _E:
    try:
        return kind(str(value))
    except ValueError:
        raise _wrong(f".{name}", f"{value!r} is not one of {', '.join(kind)}") from None


def _seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_S:
        raise _wrong(f".{name}", f"{value!r} is not a number of seconds between 0 and {_LONGEST_S:.0f}")
    return float(value)


_LONGEST_S = 30 * 86400.0


def _wrong(where: str, what: str) -> InvalidParameter:
    field = f"options.preemption{where}"
    return InvalidParameter(f"{field}: {what}", field=field)


class _Running:
    """A session that holds devices."""

    __slots__ = ("ending", "first", "kernels", "placed_at")

    def __init__(self, kernels: Sequence[RunningKernel]) -> None:
        self.kernels = kernels
        self.first = kernels[0]
        self.ending = any(kernel.ending for kernel in kernels)
        self.placed_at = max(kernel.placed_at for kernel in kernels)

    def is_within(self, scope: Scope, session: PendingSession) -> bool:
        """Return whether its owner is near enough to that of a waiting session."""
        mine, yours = self.first, session
        match scope:
            case Scope.OFF:
                return False
            case Scope.OWNER:
                return mine.access_key == yours.access_key
            case Scope.PROJECT:
                return (mine.domain, mine.project) == (yours.domain, yours.project)
            case Scope.DOMAIN:
                return mine.domain == yours.domain
            case Scope.GROUP:
                return True


class RoomMaker:
    """Chooses, in one pass, who is ended for whom."""

    def __init__(self, options: PreemptionOptions, snapshot: Snapshot, room: Room, kept: KeptPlaces) -> None:
        """Begin a pass.

        Args:
            options: Who may be ended.
            snapshot: What is decided on.
            room: The room of the pass; not changed but through ``kept``.
            kept: The places that are being made.
        """
        self.preemptions: list[Preemption] = []
        self.nominations: list[Placement] = []
        self.next_at: float | None = None
        """When the next session has run for long enough to be ended, if somebody waits for that."""
        self._options = options
        self._snapshot = snapshot
        self._now = snapshot.now
        self._room = room
        self._kept = kept
        self._is_prepared = False
        self._row: dict[AgentId, int] = {}
        self._running: dict[SessionId, _Running] = {}
        self._leaving: set[SessionId] = set()
        self._leaving_for: dict[SessionId, list[SessionId]] = {}
        self._totals: dict[str, int] = {}
        self._known: dict[Hashable, str] = {}
        self._table = VictimTable(room, ())

    def _prepare(self) -> None:
        """Sort what runs by session; a pass in which nobody waits for room does without."""
        self._is_prepared = True
        room = self._room
        self._row = {node.agent_id: row for row, node in enumerate(room.nodes)}
        grouped: dict[SessionId, list[RunningKernel]] = {}
        for kernel in self._snapshot.running:
            grouped.setdefault(kernel.session_id, []).append(kernel)
        self._running = {name: _Running(kernels) for name, kernels in grouped.items()}
        self._leaving = {name for name, one in self._running.items() if one.ending}
        for name in sorted(self._leaving):
            beneficiary = self._running[name].first.ending_for
            if beneficiary is not None:
                self._leaving_for.setdefault(beneficiary, []).append(name)
        totals = room.columns.capacity.sum(axis=0).tolist()
        self._totals = dict(zip(room.columns.slots, totals, strict=True))
        victims = [self._victim(name, one) for name, one in self._running.items() if name not in self._leaving]
        self._table = VictimTable(room, victims)

    def make_room(self, session: PendingSession) -> str:
        """Choose whom to end for a session that fits nowhere.

        Returns:
            The sentence that says what it waits for; empty when no room can be made for it.
        """
        if self._options.scope is Scope.OFF:
            return ""
        if not self._is_prepared:
            self._prepare()
        if names := self._leaving_for.get(session.id):
            return f"waits for {_names(names)} to end, which makes room for it"
        kind = self._kind(session)
        if len(self.nominations) >= _MOST_PER_PASS:
            return ""
        if (known := self._known.get(kind)) is not None:
            return known
        trial = self._room_to_come(session)
        if isinstance(place(trial, Candidates(trial, session, _RANKED), session), Placement):
            said = self._known[kind] = f"waits for {_names(self._leaving)} to end; that makes room enough"
            return said
        said = self._choose(session)
        if not said:
            self._known[kind] = said
        return said

    def _choose(self, session: PendingSession) -> str:
        trial = self._room_to_come(session)
        rows = Eligible.of(trial, session).all
        eligible, protected_until = self._victims(session)
        lines = self._table.lines_of(eligible, rows)
        chosen = Search(trial, session, rows, self._table, lines).cheapest()
        if chosen is not None:
            gone = [(row, name) for victim in chosen for row, names in victim.rows.items() for name in names]
            after = trial.without(gone)
            found = place(after, Candidates(after, session, _RANKED), session)
            if isinstance(found, Placement):
                return self._decided(session, chosen, found)
        if protected_until is not None:
            self.next_at = min(protected_until, self.next_at or protected_until)
        return ""

    def _decided(self, session: PendingSession, chosen: Sequence[Victim], found: Placement) -> str:
        for victim in chosen:
            self.preemptions.append(
                Preemption(
                    victim=victim.session_id,
                    beneficiary=session.id,
                    message=f"preempted for session {session.id} of priority {session.priority} "
                    f"(its own: {victim.priority})",
                    reschedule=self._options.mode is Mode.RESCHEDULE,
                    grace_s=self._options.grace_s,
                )
            )
        self.nominations.append(found)
        names = [victim.session_id for victim in chosen]
        self._leaving.update(names)
        self._leaving_for[session.id] = names
        gone = {kernel.kernel_id for name in names for kernel in self._running[name].kernels}
        self._kept.keep(session, found.kernels, gone)
        return f"waits for {_names(names)} to end, which makes room for it"

    def _room_to_come(self, session: PendingSession) -> Room:
        """Return what is free for a session once all that is being ended has ended."""
        gone = [
            (self._row[kernel.agent_id], kernel.kernel_id)
            for name in self._leaving
            for kernel in self._running[name].kernels
            if kernel.agent_id in self._row
        ]
        trial = self._room.without([*gone, *self._kept.held()])
        for kernel in self._kept.kept_from(session):
            try:
                trial.hold(self._row[kernel.agent_id], kernel.kernel_id, kernel.allocation)
            except Conflict:
                pass  # two places that are kept overlap: the first one counts
        return trial

    def _victims(self, session: PendingSession) -> tuple[list[bool], float | None]:
        """Return which sessions of the table may be ended for one, and when the next will have run long enough."""
        eligible: list[bool] = []
        until: float | None = None
        for victim in self._table.victims:
            one = self._running[victim.session_id]
            may = victim.session_id not in self._leaving and self._may_end(one, session)
            safe_until = one.placed_at + self._options.min_runtime_s
            if may and safe_until > self._now:
                may, until = False, safe_until if until is None else min(until, safe_until)
            eligible.append(may)
        return eligible, until

    def _may_end(self, one: _Running, session: PendingSession) -> bool:
        return (
            one.first.priority < session.priority
            and one.first.preemptible
            and (self._options.mode is Mode.TERMINATE or one.first.restarts_as is not None)
            and one.is_within(self._options.scope, session)
        )

    def _victim(self, name: SessionId, one: _Running) -> Victim:
        rows: dict[int, tuple[KernelId, ...]] = {}
        held: dict[str, int] = {}
        for kernel in one.kernels:
            row = self._row.get(kernel.agent_id)
            if row is not None:
                rows[row] = (*rows.get(row, ()), kernel.kernel_id)
            for slot, _, units in kernel.allocation.parts:
                held[slot] = held.get(slot, 0) + units
        share = max((units / max(self._totals.get(slot, 0), units, 1) for slot, units in held.items()), default=0.0)
        # A second more, so that of two that were placed just now the smaller one is the cheaper.
        return Victim(name, one.first.priority, share * (self._now - one.placed_at + 1.0), rows)

    def _kind(self, session: PendingSession) -> Hashable:
        """Return what sessions have in common for which the answer is the same, as long as nobody was chosen."""
        owner = (session.access_key, session.domain, session.project)
        return request_of(session), session.priority, owner, len(self.preemptions)


def _names(names: Sequence[SessionId] | set[SessionId]) -> str:
    listed = sorted(names)
    more = len(listed) - _NAMED
    shown = ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"session {shown}" if len(listed) == 1 else f"sessions {shown}"

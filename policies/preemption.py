"""Preemption: sessions of a lower priority are ended so that a more important one can start.

Why this comes to an end. A session is ended only for one of a strictly higher priority, so no two can end each other in
turns, and each preemption serves a higher priority than it takes from. While sessions are being ended for a waiting
one, no more are chosen for it, and the place is kept for it from everybody of its priority or below. A session that
went back into the queue is safe for the minimum run time once it runs again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

from backendai_ray.core.scheduling import PendingSession, Placement, Preemption, RunningKernel, Snapshot

from .candidates import Candidates, Eligible, request_of
from .columns import Room
from .consolidation import find_moves
from .kept_places import KeptPlaces
from .occupancy import Occupancy, named
from .placing import place
from .preemption_options import ConsolidationOptions, Mode, PreemptionOptions, Scope
from .selection import Concentrated
from .victims import Search, Victim, kernels_of

_RANKED = Concentrated()
"""What is made free is found whatever the selection; where the session goes in the end is the selection's choice."""
_MOST_PER_PASS = 16
"""For so many sessions room is made in one pass; the others have their turn in the next, which follows at once."""


def is_within(scope: Scope, running: RunningKernel, session: PendingSession) -> bool:
    """Return whether the owner of what runs is near enough to that of a waiting session."""
    match scope:
        case Scope.OFF:
            return False
        case Scope.OWNER:
            return running.access_key == session.access_key
        case Scope.PROJECT:
            return (running.domain, running.project) == (session.domain, session.project)
        case Scope.DOMAIN:
            return running.domain == session.domain
        case Scope.GROUP:
            return True


class RoomMaker:
    """Chooses, in one pass, who is ended or moved for whom."""

    def __init__(
        self,
        preemption: PreemptionOptions,
        consolidation: ConsolidationOptions,
        snapshot: Snapshot,
        room: Room,
        kept: KeptPlaces,
    ) -> None:
        """Begin a pass.

        Args:
            preemption: Who may be ended.
            consolidation: Who may be moved.
            snapshot: What is decided on.
            room: The room of the pass; not changed but through ``kept``.
            kept: The places that are being made.
        """
        self.preemptions: list[Preemption] = []
        self.nominations: list[Placement] = []
        self.next_at: float | None = None
        """When the next session has run for long enough to be ended, if somebody waits for that."""
        self._preemption = preemption
        self._consolidation = consolidation
        self._made_of = (snapshot, room, kept)
        self._known: dict[Hashable, str] = {}

    @cached_property
    def _occupancy(self) -> Occupancy:
        """Made when somebody waits for room: most passes do without."""
        return Occupancy(*self._made_of)

    def make_room(self, session: PendingSession) -> str:
        """Choose whom to move or to end for a session that fits nowhere.

        Returns:
            The sentence that says what it waits for; empty when no room can be made for it.
        """
        if names := self._occupancy.leaving_for(session.id):
            return f"waits for {named(names)} to end, which makes room for it"
        kind = self._kind(session)
        if len(self.nominations) >= _MOST_PER_PASS:
            return ""
        if (known := self._known.get(kind)) is not None:
            return known
        trial = self._occupancy.room_to_come(session)
        if isinstance(place(trial, Candidates(trial, session, _RANKED), session), Placement):
            leaving = named(self._occupancy.leaving)
            said = self._known[kind] = f"waits for {leaving} to end; that makes room enough"
            return said
        # Who is moved goes on at once, so that is tried first.
        said = self._move(session) or self._choose(session)
        if not said:
            self._known[kind] = said
        return said

    def _move(self, session: PendingSession) -> str:
        if not self._consolidation.max_moves:
            return ""
        found = find_moves(self._occupancy, session, self._consolidation)
        self._look_again(found.safe_until)
        if found.place is None:
            return ""
        self.preemptions += found.lines(session, self._consolidation.grace_s)
        self.nominations += found.nominations()
        names = [moved.id for moved, _ in found.moves]
        self._occupancy.will_leave(names, session, found.place)
        for moved, there in found.moves:
            self._occupancy.keep(moved, there)
        return f"waits for {named(names)} to be moved, which makes room for it"

    def _choose(self, session: PendingSession) -> str:
        if self._preemption.scope is Scope.OFF:
            return ""
        trial = self._occupancy.room_to_come(session)
        rows = Eligible.of(trial, session).all
        table = self._occupancy.table
        eligible, safe_until = self._victims(session)
        chosen = Search(trial, session, rows, table, table.lines_of(eligible, rows)).cheapest()
        if chosen is not None:
            after = trial.without(kernels_of(chosen))
            found = place(after, Candidates(after, session, _RANKED), session)
            if isinstance(found, Placement):
                return self._decided(session, chosen, found)
        self._look_again(safe_until)
        return ""

    def _decided(self, session: PendingSession, chosen: Sequence[Victim], found: Placement) -> str:
        for victim in chosen:
            self.preemptions.append(
                Preemption(
                    victim=victim.session_id,
                    beneficiary=session.id,
                    message=f"preempted for session {session.id} of priority {session.priority} "
                    f"(its own: {victim.priority})",
                    reschedule=self._preemption.mode is Mode.RESCHEDULE,
                    grace_s=self._preemption.grace_s,
                )
            )
        self.nominations.append(found)
        names = [victim.session_id for victim in chosen]
        self._occupancy.will_leave(names, session, found)
        return f"waits for {named(names)} to end, which makes room for it"

    def _look_again(self, at: float | None) -> None:
        if at is not None:
            self.next_at = min(at, self.next_at or at)

    def _victims(self, session: PendingSession) -> tuple[list[bool], float | None]:
        """Return which sessions of the table may be ended for one, and when the next will have run long enough."""
        eligible: list[bool] = []
        until: float | None = None
        for victim in self._occupancy.table.victims:
            one = self._occupancy.running[victim.session_id]
            may = victim.session_id not in self._occupancy.leaving and self._may_end(one.first, session)
            safe_until = one.placed_at + self._preemption.min_runtime_s
            if may and safe_until > self._occupancy.now:
                may, until = False, safe_until if until is None else min(until, safe_until)
            eligible.append(may)
        return eligible, until

    def _may_end(self, one: RunningKernel, session: PendingSession) -> bool:
        return (
            one.priority < session.priority
            and one.preemptible
            and (self._preemption.mode is Mode.TERMINATE or one.restarts_as is not None)
            and is_within(self._preemption.scope, one, session)
        )

    def _kind(self, session: PendingSession) -> Hashable:
        """Return what sessions have in common for which the answer is the same, as long as nobody was chosen."""
        owner = (session.access_key, session.domain, session.project)
        return request_of(session), session.priority, owner, len(self.preemptions)

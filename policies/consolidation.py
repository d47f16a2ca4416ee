"""Consolidation: sessions that may run again are moved, so that what is free in pieces is free in one place.

A move ends a session and lets it run again, from its beginning, at a place that is kept for it; so it costs the work
that it had done. Whoever is moved is of the waiting session's priority or below, and has a place to go on at once.

The search tries the sets with the fewest sessions first, and among those the one that loses the least work, as far as
its bounds go: on the nodes that can be cleared at the least cost by their totals, among the cheapest sessions there. A
set counts when the allocator finds places for the waiting session and for all that are moved. For a session that needs
one node, only sessions of that node are moved: chains, in which one makes room for another that moves, are not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, permutations

from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.proposals import Move, Proposal
from backendai_ray.core.scheduling import (
    KernelPlacement,
    PendingSession,
    Placement,
    Plan,
    Preemption,
    RunningKernel,
    Snapshot,
)

from .candidates import Candidates, Eligible
from .columns import Room, RoomCache
from .kept_places import KeptPlaces
from .occupancy import Occupancy
from .placing import NoRoom, place
from .preemption_options import ConsolidationOptions
from .quotas import QuotaBook
from .reasons import OWN_REASONS, not_eligible_yet, why_not_placed
from .selection import Concentrated
from .victims import Search, Victim, kernels_of

MOST_NODES = 16
"""So many nodes are considered to be cleared."""
MOST_THERE = 10
"""So many sessions of one node (for a gang over several nodes: in all) are considered to be moved."""
MOST_ORDERS = 6
"""In so many orders the sessions of one set are placed anew."""
MOST_SETS = 2000
"""So many sets of sessions are looked at."""

_RANKED = Concentrated()


@dataclass(frozen=True, slots=True)
class Found:
    """What the search came to."""

    place: Placement | None = None
    """Of the session that waits."""
    moves: tuple[tuple[PendingSession, Placement], ...] = ()
    """Who is moved, as it will wait, and where to."""
    safe_until: float | None = None
    """When the next session has run for long enough to be moved."""
    movable: int = 0
    """How many sessions could be moved."""

    def lines(self, session: PendingSession, grace_s: float | None) -> tuple[Preemption, ...]:
        """Return the lines of a plan that end those that are moved."""
        message = f"moved so that session {session.id} can start"
        return tuple(Preemption(moved.id, session.id, message, True, grace_s) for moved, _ in self.moves)

    def nominations(self) -> tuple[Placement, ...]:
        """Return the places of all, the waiting session's first."""
        return () if self.place is None else (self.place, *(placement for _, placement in self.moves))


def find_moves(
    occupancy: Occupancy,
    session: PendingSession,
    options: ConsolidationOptions,
    may_move: Callable[[RunningKernel], bool] = lambda _: True,
) -> Found:
    """Look for the cheapest moves that let a session start which fits nowhere.

    Args:
        occupancy: What runs where.
        session: The session that waits.
        options: The bounds.
        may_move: Says of one kernel of a session whether that may be moved.
    """
    trial = occupancy.room_to_come(session)
    eligible: list[bool] = []
    safe_until: float | None = None
    for victim in occupancy.table.victims:
        one = occupancy.running[victim.session_id]
        may = victim.session_id not in occupancy.leaving and _is_movable(one.first, session) and may_move(one.first)
        until = one.placed_at + options.min_runtime_s
        if may and until > occupancy.now:
            may, safe_until = False, until if safe_until is None else min(until, safe_until)
        eligible.append(may)
    rows = Eligible.of(trial, session).all
    search = Search(trial, session, rows, occupancy.table, occupancy.table.lines_of(eligible, rows))
    for chosen, at in islice(_sets(search, options.max_moves), MOST_SETS):
        found = _replaced(occupancy, trial, session, chosen) if search.fits(chosen, at) else None
        if found is not None:
            return Found(found[0], found[1], safe_until, sum(eligible))
    return Found(safe_until=safe_until, movable=sum(eligible))


def _is_movable(one: RunningKernel, session: PendingSession) -> bool:
    return one.preemptible and one.restarts_as is not None and one.priority <= session.priority


def _sets(search: Search, most: int) -> Iterator[tuple[tuple[Victim, ...], Sequence[int]]]:
    """Return sets of sessions that might be moved, with the nodes that this is to clear; the cheapest first."""
    sets: dict[tuple[SessionId, ...], tuple[int, float, tuple[Victim, ...], Sequence[int]]] = {}
    for victims, rows in search.groups(MOST_NODES):
        cheapest = sorted(victims, key=lambda victim: (victim.lost, victim.session_id))[:MOST_THERE]
        for size in range(1, most + 1):
            for chosen in combinations(cheapest, size):
                ids = tuple(sorted(victim.session_id for victim in chosen))
                sets.setdefault(ids, (size, sum(victim.lost for victim in chosen), chosen, rows))
    for ids in sorted(sets, key=lambda ids: (*sets[ids][:2], ids)):
        yield sets[ids][2], sets[ids][3]


def _replaced(
    occupancy: Occupancy, trial: Room, session: PendingSession, chosen: Iterable[Victim]
) -> tuple[Placement, tuple[tuple[PendingSession, Placement], ...]] | None:
    """Return the places of a waiting session and of those that are moved for it; ``None``: not all have one."""
    chosen = sorted(chosen, key=lambda victim: (-len(victim.rows), -victim.lost, victim.session_id))
    for order in islice(permutations(chosen), MOST_ORDERS):  # who goes first decides who finds a place
        found = _replaced_in(occupancy, trial, session, order)
        if found is not None:
            return found
    return None


def _replaced_in(
    occupancy: Occupancy, trial: Room, session: PendingSession, order: Sequence[Victim]
) -> tuple[Placement, tuple[tuple[PendingSession, Placement], ...]] | None:
    after = trial.without(kernels_of(order))
    mine = place(after, Candidates(after, session, _RANKED), session)
    if not isinstance(mine, Placement):
        return None
    moves: list[tuple[PendingSession, Placement]] = []
    for victim in order:
        moved = occupancy.running[victim.session_id].first.restarts_as
        assert moved is not None
        there = place(after, Candidates(after, moved, _RANKED), moved)
        if not isinstance(there, Placement):
            return None
        moves.append((moved, there))
    return mine, tuple(moves)


# ── on request ────────────────────────────────────────────────────────────────────────────────────────────────────


def propose(
    snapshot: Snapshot,
    session: PendingSession,
    options: ConsolidationOptions,
    may_move: Callable[[RunningKernel], bool] = lambda _: True,
) -> Proposal:
    """Return the moves that let a waiting session start, as a plan; or a plan of nothing, and why.

    Args:
        snapshot: The world.
        session: One of its pending sessions.
        options: The bounds.
        may_move: Says of one kernel of a session whether that may be moved.
    """
    room = RoomCache().open(snapshot.nodes)
    still_held = frozenset(kernel.kernel_id for kernel in snapshot.running)
    quotas = QuotaBook(snapshot.quotas, snapshot.running)
    barred = not_eligible_yet(session, snapshot.now, still_held) or quotas.refusal(session)
    if barred is not None:
        return _none(session, f"no move would let it start: it {barred.message}")
    occupancy = Occupancy(snapshot, room, KeptPlaces.of(snapshot, room, still_held, quotas))
    if names := occupancy.leaving_for(session.id):
        return _none(session, f"room is being made for it already: {len(names)} sessions are being ended")
    outcome = _fits(room.without(()), session)
    if isinstance(outcome, Placement):
        return _none(session, "there is room for it now; nothing has to be moved")
    code, why = why_not_placed(room, session, outcome)
    if code in OWN_REASONS:
        return _none(session, f"no move would let it start: it {why}")
    if isinstance(_fits(occupancy.room_to_come(session), session), Placement):
        return _none(session, "what is being ended at this moment makes room enough; nothing has to be moved")
    found = find_moves(occupancy, session, options, may_move)
    if not found.moves:
        return _none(session, _why_none(found, options))
    moves = tuple(_move(occupancy, moved, there) for moved, there in found.moves)
    plan = Plan(preemptions=found.lines(session, options.grace_s), nominations=found.nominations())
    many = f"{len(moves)} sessions are" if len(moves) > 1 else "1 session is"
    lost = sum(move.ran_s for move in moves)
    return Proposal(session.id, plan, moves, f"it can start if {many} moved, which loses {lost:.0f} s of work")


def _fits(room: Room, session: PendingSession) -> Placement | NoRoom:
    return place(room, Candidates(room, session, _RANKED), session)


def _move(occupancy: Occupancy, moved: PendingSession, there: Placement) -> Move:
    one = occupancy.running[moved.id]
    return Move(moved.id, _nodes(one.kernels), _nodes(there.kernels), occupancy.now - one.placed_at)


def _nodes(kernels: Iterable[RunningKernel | KernelPlacement]) -> tuple[AgentId, ...]:
    return tuple(sorted({kernel.agent_id for kernel in kernels}))


def _none(session: PendingSession, message: str) -> Proposal:
    return Proposal(session.id, Plan(), (), message)


def _why_none(found: Found, options: ConsolidationOptions) -> str:
    if found.movable:
        moves = "move" if options.max_moves == 1 else "moves"
        return (
            f"found nothing: {found.movable} sessions may be moved, and no {options.max_moves} {moves} of those that "
            "were tried free a place for it and leave one for all that are moved"
        )
    if found.safe_until is not None:
        return f"no session may be moved yet: those that could have run for less than {options.min_runtime_s:g} s"
    return "no session may be moved: none that runs is of its priority or below and may be run again"

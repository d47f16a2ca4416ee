"""One pass over a queue in a given order: the mechanics that queueing policies share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import AgentSelection, PendingSession, Placement, Plan, Refusal, RefusalCode

from .candidates import Candidates, request_of
from .columns import Room
from .kept_places import KeptPlaces
from .placing import place
from .preemption import RoomMaker
from .quotas import QuotaBook
from .reasons import OWN_REASONS, node_refusals, not_eligible_yet, why_not_placed
from .reservation import Reservation

# One sentence for all of them, so that a long queue costs little to tell; an explanation says more.
_BEHIND = "waits behind a session that goes first and waits for room"
_WOULD_DELAY = "might not end before the session that goes first can start, and would take its room"


_PLACES_TRIED = 4
"""So many places are tried for a session that must not delay the head."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Why sessions of one kind of request cannot be placed in this pass."""

    code: RefusalCode
    message: str


@runtime_checkable
class AttentiveQueue(Protocol):
    """A queue whose order depends on what the pass has placed so far."""

    def __iter__(self) -> Iterator[PendingSession]:
        """Return the sessions, each once; the next is asked for when the one before has been judged."""
        ...

    def placed(self, session: PendingSession) -> None:
        """Take note that the session returned last starts."""
        ...


class QueuePass:
    """Judges sessions one after the other in one room.

    With ``strict``, the first session that waits for room holds up all behind it, so that nothing overtakes it; a
    session that waits for a reason of its own (see :data:`.reasons.OWN_REASONS`) holds up nobody.
    """

    def __init__(
        self,
        room: Room,
        selection: AgentSelection,
        *,
        now: float,
        still_held: frozenset[KernelId] = frozenset(),
        strict: bool = True,
        reserve: Callable[[PendingSession], Reservation | None] | None = None,
        kept: KeptPlaces | None = None,
        room_maker: RoomMaker | None = None,
        quotas: QuotaBook | None = None,
    ) -> None:
        """Begin a pass.

        Args:
            room: What is free; the pass takes from it.
            selection: Ranks the nodes.
            now: The snapshot's time, Unix seconds.
            still_held: Kernels that hold devices: their sessions cannot be placed again yet.
            strict: Whether the first session that waits for room holds up the rest.
            reserve: Makes the reservation of the session that holds up the rest: what does not touch it may go
                ahead. Returns ``None`` where the time of its start cannot be known.
            kept: The places that are being made for sessions that wait.
            room_maker: Chooses whom to end for a session that finds no room; ``None``: nobody.
            quotas: Says who would exceed a quota.
        """
        self.room = room
        self._selection = selection
        self._now = now
        self._still_held = still_held
        self._strict = strict
        self._known: dict[Hashable, Candidates | _Verdict] = {}
        """By kind of request: its candidates, or why such requests cannot be placed any more."""
        self._turned_away: set[Hashable] = set()
        """Kinds of which one was turned away from some node for the head's sake."""
        self._head: tuple[PendingSession, _Verdict] | None = None
        self._reserve = reserve
        self._quotas = quotas or QuotaBook()
        self._reservation: Reservation | None = None
        self._kept = kept or KeptPlaces(room)
        self._room_maker = room_maker

    def run(self, queue: Iterable[PendingSession]) -> Plan:
        """Judge a whole queue."""
        placements: list[Placement] = []
        refusals: list[Refusal] = []
        for _, outcome in self._outcomes(queue):
            if isinstance(outcome, Placement):
                placements.append(outcome)
            else:
                refusals.append(outcome)
        maker = self._room_maker
        if maker is None:
            return Plan(placements=tuple(placements), refusals=tuple(refusals))
        return Plan(
            placements=tuple(placements),
            preemptions=tuple(maker.preemptions),
            refusals=tuple(refusals),
            next_at=maker.next_at,
            nominations=tuple(maker.nominations),
        )

    def judge(self, session: PendingSession) -> Placement | Refusal:
        """Place the next session of the queue, or say why not."""
        barred = not_eligible_yet(session, self._now, self._still_held) or self._quotas.refusal(session)
        if barred is not None:
            return barred
        outcome = self._judge_eligible(session)
        if isinstance(outcome, Placement):
            self._quotas.take(session)
        return outcome

    def _judge_eligible(self, session: PendingSession) -> Placement | Refusal:
        self._kept.turn_of(session)
        # Who has a place that is kept for it delays nobody by taking it.
        if self._head is not None and session.id not in self._kept:
            return self._judge_behind(session)
        outcome = self._try(session)
        if isinstance(outcome, Placement):
            self._kept.started(session)
            return outcome
        if self._room_maker is not None and outcome.code not in OWN_REASONS:
            room_comes = self._room_maker.make_room(session)
            outcome = _Verdict(RefusalCode.AWAITS_ROOM, room_comes) if room_comes else outcome
        if self._strict and self._head is None and outcome.code not in OWN_REASONS:
            self._head = session, outcome
            self._reservation = self._reserve(session) if self._reserve is not None else None
        return Refusal(session.id, outcome.code, outcome.message)

    def _judge_behind(self, session: PendingSession) -> Placement | Refusal:
        reservation = self._reservation
        if reservation is None:
            return Refusal(session.id, RefusalCode.BEHIND_HEAD, _BEHIND)
        if not reservation.is_in_the_way(session) and self._leaves_quota(reservation, session):
            outcome = self._try_beside(reservation, session)
            if outcome is not None:
                return outcome
            reservation.put_in_the_way(session)
        return Refusal(session.id, RefusalCode.BEHIND_HEAD, _WOULD_DELAY)

    def _try_beside(self, reservation: Reservation, session: PendingSession) -> Placement | Refusal | None:
        """Place a session where it does not delay the head; ``None`` where it would everywhere that was tried."""
        # Who has ended before may go where others may not: those have candidates of their own.
        apart = not reservation.ends_before(session)
        kind = self._kind_of(session, apart=apart)
        for _ in range(_PLACES_TRIED):
            mark = self.room.mark()
            outcome = self._try(session, apart=apart)
            if isinstance(outcome, _Verdict):
                return None if kind in self._turned_away else Refusal(session.id, outcome.code, outcome.message)
            if reservation.admits(session, outcome):
                return outcome
            self.room.undo_to(mark)
            self._turned_away.add(kind)
            candidates = self._known[kind]
            assert isinstance(candidates, Candidates)
            for row in reservation.rows_of(outcome):
                candidates.reject(row)
        return None

    def _leaves_quota(self, reservation: Reservation, session: PendingSession) -> bool:
        """Return whether a session leaves the head what its quotas allow it when its time comes."""
        assert self._head is not None
        return reservation.ends_before(session) or self._quotas.admits_both(self._head[0], session)

    def explain(self, queue: Iterable[PendingSession], session_id: SessionId) -> Placement | Refusal | None:
        """Judge the queue up to a session and return what becomes of that one, with every node's reason.

        Returns:
            ``None`` when the session is not in the queue.
        """
        ahead = 0
        for session, outcome in self._outcomes(queue):
            if session.id != session_id:
                ahead += isinstance(outcome, Refusal)
            elif isinstance(outcome, Placement):
                return outcome
            else:
                return self._in_detail(session, outcome, ahead)
        return None

    def _outcomes(self, queue: Iterable[PendingSession]) -> Iterator[tuple[PendingSession, Placement | Refusal]]:
        attentive = queue if isinstance(queue, AttentiveQueue) else None
        for session in queue:
            outcome = self.judge(session)
            if attentive is not None and isinstance(outcome, Placement):
                attentive.placed(session)
            yield session, outcome

    def _in_detail(self, session: PendingSession, refusal: Refusal, ahead: int) -> Refusal:
        code, message, behind = refusal.code, refusal.message, None
        if code is RefusalCode.BEHIND_HEAD and self._head is not None:
            head, waits_for = self._head
            behind = head.id
            message = f"waits behind session {head.id}, which {waits_for.message}; {ahead} waiting before it"
            mark = self.room.mark()
            own = self._try(session)
            self.room.undo_to(mark)
            if isinstance(own, Placement):
                message = f"{message}; there is room for it now"
                if self._reservation is not None:
                    message = f"{message}, but it {_WOULD_DELAY}"
            elif own.code in OWN_REASONS:
                code, message, behind = own.code, own.message, None
        return Refusal(session.id, code, message, node_refusals(self.room, session), ahead, behind)

    def _try(self, session: PendingSession, *, apart: bool = False) -> Placement | _Verdict:
        """Place a session whatever waits before it; identical requests that found no room are judged once."""
        kind = self._kind_of(session, apart=apart)
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = Candidates(self.room, session, self._selection)
        if isinstance(known, _Verdict):
            # Nothing is freed while a pass goes on: what did not fit once does not fit later.
            return known
        outcome = place(self.room, known, session)
        if isinstance(outcome, Placement):
            return outcome
        verdict = _Verdict(*why_not_placed(self.room, session, outcome))
        self._known[kind] = verdict
        return verdict

    def _kind_of(self, session: PendingSession, *, apart: bool) -> Hashable:
        """Return what sessions have in common that share their candidates."""
        return request_of(session), session.id in self._kept and session.id, apart

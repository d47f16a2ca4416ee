"""What policies that start sessions in some order have in common: bands of priority, options, reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backendai_ray.core.errors import InvalidParameter, SessionNotFound
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import AgentSelection, PendingSession, Placement, Plan, Refusal, Snapshot

from .columns import Room, RoomCache
from .kept_places import KeptPlaces
from .preemption import RoomMaker
from .preemption_options import ConsolidationOptions, PreemptionOptions, Scope
from .queue_pass import QueuePass
from .quotas import QuotaBook
from .reservation import Reservation
from .selection import for_pass

_KEPT = 1000


class QueueingPolicy:
    """Starts sessions in the order of a queue; a subclass says which order.

    Sessions of a higher priority always come first; the order decides among those of one priority.

    ``strict`` (the default): nothing overtakes the first session that waits for room. Sessions that cannot start for
    a reason of their own (too large for any node, a start time or a dependency to come, no node of their
    architecture) hold up nobody. Without it, later sessions may use what the first one cannot.

    ``preemption`` says whether sessions of a lower priority may be ended to make room, and ``consolidation`` whether
    others may be moved; see :mod:`.preemption_options`. By default they may not.

    An instance keeps a memo between calls; use it from one thread at a time.
    """

    name = ""

    def __init__(
        self,
        *,
        selection: AgentSelection,
        strict: bool = True,
        preemption: Mapping[str, Any] | None = None,
        consolidation: Mapping[str, Any] | None = None,
        **unknown: object,
    ) -> None:
        """Make the policy.

        Raises:
            InvalidParameter: an option is unknown or of the wrong type.
        """
        if unknown:
            option = min(unknown)
            message = f"options.{option}: {self.name} knows only the options consolidation, preemption and strict"
            raise InvalidParameter(message, field=f"options.{option}")
        if not isinstance(strict, bool):
            raise InvalidParameter(f"options.strict: {strict!r} is neither true nor false", field="options.strict")
        self._selection = selection
        self._strict = strict
        self._preemption = PreemptionOptions.parse(preemption)
        self._consolidation = ConsolidationOptions.parse(consolidation)
        self._rooms = RoomCache()
        self._behind: dict[SessionId, Refusal] = {}

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return an ordered plan."""
        judge, queue = self._begin(snapshot)
        return judge.run(queue)

    def explain(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        """Return what ``decide`` does with one session, with a reason for every node that refuses it.

        Raises:
            SessionNotFound: it is not pending in the snapshot.
        """
        judge, queue = self._begin(snapshot)
        outcome = judge.explain(queue, session_id)
        if outcome is None:
            raise SessionNotFound(f"session {session_id} is not waiting", session_id=session_id)
        return outcome

    def _queue(self, snapshot: Snapshot, room: Room) -> Iterable[PendingSession]:
        """Return the waiting sessions in the order in which they are tried.

        It may be a :class:`.queue_pass.AttentiveQueue`.

        Args:
            snapshot: The world that is decided on.
            room: What is free on its nodes; not to be changed.
        """
        raise NotImplementedError

    def _begin(self, snapshot: Snapshot) -> tuple[QueuePass, Iterable[PendingSession]]:
        room = self._rooms.open(snapshot.nodes)
        if len(self._behind) > 2 * len(snapshot.pending) + _KEPT:
            self._behind.clear()
        still_held = frozenset(kernel.kernel_id for kernel in snapshot.running)
        quotas = QuotaBook(snapshot.quotas, snapshot.running)
        kept = KeptPlaces.of(snapshot, room, still_held, quotas)
        makes_room = self._preemption.scope is not Scope.OFF or self._consolidation.max_moves
        options = self._preemption, self._consolidation
        judge = QueuePass(
            room,
            for_pass(self._selection, room, snapshot),
            now=snapshot.now,
            still_held=still_held,
            strict=self._strict,
            reserve=self._reserve(snapshot, room),
            kept=kept,
            room_maker=RoomMaker(*options, snapshot, room, kept) if makes_room else None,
            quotas=quotas,
            behind=self._behind,
        )
        return judge, self._queue(snapshot, room)

    def _reserve(self, snapshot: Snapshot, room: Room) -> Callable[[PendingSession], Reservation | None] | None:
        """Return what makes the reservation of the session that holds up the rest; ``None``: it has none."""
        return None


def in_bands(sessions: Iterable[PendingSession]) -> list[PendingSession]:
    """Return sessions by falling priority; within one priority they keep their order."""
    return sorted(sessions, key=_falling_priority)


def _falling_priority(session: PendingSession) -> int:
    return -session.priority

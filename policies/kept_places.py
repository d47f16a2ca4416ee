"""Places that are being made for sessions that wait: kept from everybody of their priority and below.

What is free of such a place is held in the room of the pass while others are judged, and let go when its owner has its
turn, or somebody of a higher priority. A place that cannot become free any more (its node left, somebody more
important is there) is forgotten, so that nothing stays idle for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import KernelPlacement, PendingSession, Snapshot
from backendai_ray.core.slots import SlotKind, slot_kind

from .columns import Room
from .quotas import QuotaBook
from .reasons import not_eligible_yet


class _Place:
    __slots__ = ("held", "kernels", "priority")

    def __init__(self, priority: int, kernels: Sequence[KernelPlacement]) -> None:
        self.priority, self.kernels = priority, kernels
        self.held: list[tuple[int, KernelId]] = []
        """What of it is held in the room now, by row and a name of its own."""


class KeptPlaces:
    """The kept places of one pass, held in its room and let go as sessions have their turns."""

    def __init__(self, room: Room, ending: Collection[KernelId] = ()) -> None:
        """Begin a pass in which nothing is kept yet.

        Args:
            room: The room of the pass.
            ending: Kernels that come free by themselves.
        """
        self._room = room
        self._ending = ending
        self._row: dict[AgentId, int] = {}
        self._places: dict[SessionId, _Place] = {}
        self._band: int | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, room: Room, still_held: frozenset[KernelId], quotas: QuotaBook) -> KeptPlaces:
        """Return what is kept in a snapshot: the places of those that may start as soon as there is room.

        Of a session that is moved, its next place is kept from the beginning.
        """
        nominated = [session for session in snapshot.pending if session.nominated]
        ending = [kernel for kernel in snapshot.running if kernel.ending]
        moved = {one.session_id: one.restarts_as for one in ending if one.restarts_as and one.restarts_as.nominated}
        if not nominated and not moved:
            return cls(room)
        kept = cls(room, frozenset(kernel.kernel_id for kernel in ending))
        for session in nominated:
            if not_eligible_yet(session, snapshot.now, still_held) is None and quotas.refusal(session) is None:
                kept.keep(session, session.nominated)
        for session in filter(None, moved.values()):
            kept.keep(session, session.nominated)
        return kept

    def __contains__(self, session_id: SessionId) -> bool:
        """Return whether a place is kept for a session."""
        return session_id in self._places

    def keep(
        self, session: PendingSession, kernels: Sequence[KernelPlacement], gone: Collection[KernelId] = ()
    ) -> None:
        """Keep a place, if it is free or comes free.

        Args:
            session: For whom.
            kernels: The place.
            gone: Further kernels that will be ended for it.
        """
        self._row = self._row or {node.agent_id: row for row, node in enumerate(self._room.nodes)}
        if self._can_come_free(kernels, gone):
            self._places[session.id] = _Place(session.priority, kernels)
            self._band = None

    def turn_of(self, session: PendingSession) -> None:
        """Hold what is kept from this session, and let go of what is not."""
        if not self._places or (session.priority == self._band and session.id not in self._places):
            return
        for owner, place in self._places.items():
            if place.priority < session.priority or owner == session.id:
                self._let_go(place)
            elif not place.held:
                self._hold(place)
        self._band = None if session.id in self._places else session.priority

    def started(self, session: PendingSession) -> None:
        """Forget the place of a session that has one now."""
        self._places.pop(session.id, None)

    def held(self) -> list[tuple[int, KernelId]]:
        """Return what is held in the room now."""
        return [one for place in self._places.values() for one in place.held]

    def kept_from(self, session: PendingSession) -> list[KernelPlacement]:
        """Return the places, whole, that this session must leave alone."""
        return [
            kernel
            for owner, place in self._places.items()
            if place.priority >= session.priority and owner != session.id
            for kernel in place.kernels
        ]

    def _can_come_free(self, kernels: Sequence[KernelPlacement], gone: Collection[KernelId]) -> bool:
        trials: dict[AgentId, DeviceMap] = {}
        for kernel in kernels:
            row = self._row.get(kernel.agent_id)
            if row is None or self._room.nodes[row].unschedulable:
                return False
            trial = trials.get(kernel.agent_id)
            if trial is None:
                trial = trials[kernel.agent_id] = self._room.map(row).copy()
                for name in [name for name in trial.held if name in self._ending or name in gone]:
                    trial.release(name)
            try:
                trial.hold(kernel.kernel_id, kernel.allocation)
            except Conflict:
                return False
        return True

    def _hold(self, place: _Place) -> None:
        for kernel in place.kernels:
            row = self._row[kernel.agent_id]
            free = _free_part(self._room.map(row), kernel.allocation)
            if free.parts:
                name = KernelId(f"kept for {kernel.kernel_id}")
                self._room.hold(row, name, free)
                place.held.append((row, name))

    def _let_go(self, place: _Place) -> None:
        for row, name in place.held:
            self._room.release(row, name)
        place.held.clear()


def _free_part(one: DeviceMap, allocation: Allocation) -> Allocation:
    """Return what is free now of what a place consists of."""
    parts = []
    for slot, device, units in allocation.parts:
        free = min(units, one.free_by_device(slot).get(device, 0))
        if free == units or (free and slot_kind(slot) is not SlotKind.WHOLE):
            parts.append((slot, device, free))
    return Allocation.of(parts)

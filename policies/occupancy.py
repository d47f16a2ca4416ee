"""Who holds what while a pass goes on, session by session: what preemption and consolidation choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession, Placement, RunningKernel, Snapshot

from .columns import Room
from .kept_places import KeptPlaces
from .victims import Victim, VictimTable

_NAMED = 3
"""So many sessions are spelled out in a sentence."""


class RunningSession:
    """A session that holds devices."""

    __slots__ = ("ending", "first", "kernels", "placed_at")

    def __init__(self, kernels: Sequence[RunningKernel]) -> None:
        self.kernels = kernels
        self.first = kernels[0]
        """Stands for all of them in what belongs to the session."""
        self.ending = any(kernel.ending for kernel in kernels)
        self.placed_at = max(kernel.placed_at for kernel in kernels)


class Occupancy:
    """The sessions that run on the nodes of a room, those that are being ended, and the places that are kept."""

    def __init__(self, snapshot: Snapshot, room: Room, kept: KeptPlaces) -> None:
        """Sort what runs by session.

        Args:
            snapshot: What is decided on.
            room: The room of the pass; not changed but through ``kept``.
            kept: The places that are being made.
        """
        self.now = snapshot.now
        self._room = room
        self._kept = kept
        self._row: dict[AgentId, int] = {node.agent_id: row for row, node in enumerate(room.nodes)}
        grouped: dict[SessionId, list[RunningKernel]] = {}
        for kernel in snapshot.running:
            grouped.setdefault(kernel.session_id, []).append(kernel)
        self.running = {name: RunningSession(kernels) for name, kernels in grouped.items()}
        self.leaving = {name for name, one in self.running.items() if one.ending}
        """Sessions that are being ended, or were chosen to be in this pass."""
        self._leaving_for: dict[SessionId, list[SessionId]] = {}
        for name in sorted(self.leaving):
            beneficiary = self.running[name].first.ending_for
            if beneficiary is not None:
                self._leaving_for.setdefault(beneficiary, []).append(name)
        totals = room.columns.capacity.sum(axis=0).tolist()
        self._totals = dict(zip(room.columns.slots, totals, strict=True))
        victims = [self._victim(name, one) for name, one in self.running.items() if name not in self.leaving]
        self.table = VictimTable(room, victims)
        """Those that could be ended, as far as room is concerned."""

    def leaving_for(self, session_id: SessionId) -> Sequence[SessionId]:
        """Return who is being ended for a session."""
        return self._leaving_for.get(session_id, ())

    def room_to_come(self, session: PendingSession) -> Room:
        """Return what is free for a session once all that is being ended has ended, in a room of its own."""
        gone = [pair for name in self.leaving for pair in self._kernels_of(name)]
        trial = self._room.without([*gone, *self._kept.held()])
        for kernel in self._kept.kept_from(session):
            try:
                trial.hold(self._row[kernel.agent_id], kernel.kernel_id, kernel.allocation)
            except Conflict:
                pass  # two places that are kept overlap: the first one counts
        return trial

    def will_leave(self, names: Sequence[SessionId], session: PendingSession, found: Placement) -> None:
        """Take note that sessions are ended for one that waits, and keep the place that this makes."""
        self.leaving.update(names)
        self._leaving_for[session.id] = list(names)
        self.keep(session, found)

    def keep(self, session: PendingSession, found: Placement) -> None:
        """Keep a place that is free once those that leave have left."""
        gone = {kernel.kernel_id for name in self.leaving for kernel in self.running[name].kernels}
        self._kept.keep(session, found.kernels, gone)

    def _kernels_of(self, name: SessionId) -> Iterable[tuple[int, KernelId]]:
        for kernel in self.running[name].kernels:
            if kernel.agent_id in self._row:
                yield self._row[kernel.agent_id], kernel.kernel_id

    def _victim(self, name: SessionId, one: RunningSession) -> Victim:
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
        return Victim(name, one.first.priority, share * (self.now - one.placed_at + 1.0), rows)


def named(names: Iterable[SessionId]) -> str:
    """Return sessions as people read them: ``session a``, ``sessions a, b``."""
    listed = sorted(names)
    more = len(listed) - _NAMED
    shown = ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"session {shown}" if len(listed) == 1 else f"sessions {shown}"

"""Placing one session: all of its kernels, or none."""

from __future__ import annotations

from dataclasses import dataclass

from backendai_ray.core.allocator import Shortage
from backendai_ray.core.scheduling import KernelPlacement, PendingSession, Placement
from backendai_ray.core.sessions import ClusterMode

from .candidates import Candidates
from .columns import Room


@dataclass(frozen=True, slots=True)
class NoRoom:
    """How far placing came before it was taken back."""

    placed: int
    """Kernels of the gang that found a node."""
    fragmented: bool
    """A node had enough in all, but in pieces."""


def place(room: Room, candidates: Candidates, session: PendingSession) -> Placement | NoRoom:
    """Place a session in the room; when it does not fit, the room is as before."""
    if session.cluster_mode is ClusterMode.SINGLE_NODE and len(session.kernel_ids) > 1:
        return _on_one_node(room, candidates, session)
    mark = room.mark()
    kernels: list[KernelPlacement] = []
    used: list[int] = []
    fragmented, size = False, len(session.kernel_ids)
    for kernel_id in session.kernel_ids:
        while (row := candidates.best_for_gang(size - len(used), used) if size > 1 else candidates.best()) is not None:
            found = room.place(row, kernel_id, session.slots)
            if not isinstance(found, Shortage):
                used.append(row)
                kernels.append(KernelPlacement(kernel_id, room.nodes[row].agent_id, found))
                break
            fragmented = True
            candidates.reject(row)
        else:
            room.undo_to(mark)
            return NoRoom(len(kernels), fragmented)
    return Placement(session.id, session.version, tuple(kernels))


def _on_one_node(room: Room, candidates: Candidates, session: PendingSession) -> Placement | NoRoom:
    mark = room.mark()
    most, fragmented = 0, False
    while (row := candidates.best()) is not None:
        kernels: list[KernelPlacement] = []
        for kernel_id in session.kernel_ids:
            found = room.place(row, kernel_id, session.slots)
            if isinstance(found, Shortage):
                break
            kernels.append(KernelPlacement(kernel_id, room.nodes[row].agent_id, found))
        else:
            return Placement(session.id, session.version, tuple(kernels))
        most, fragmented = max(most, len(kernels)), True
        room.undo_to(mark)
        candidates.reject(row)
    return NoRoom(most, fragmented)

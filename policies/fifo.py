"""First in, first out."""

from __future__ import annotations

from collections.abc import Iterable

from backendai_ray.core.scheduling import PendingSession, Snapshot

from .columns import Room
from .queueing import QueueingPolicy, in_bands


class FifoPolicy(QueueingPolicy):
    """Starts sessions of one priority in the order of their submission."""

    name = "fifo"

    def _queue(self, snapshot: Snapshot, room: Room) -> Iterable[PendingSession]:
        return in_bands(snapshot.pending)

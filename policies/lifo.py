"""Last in, first out."""

from __future__ import annotations

from collections.abc import Iterable

from backendai_ray.core.scheduling import PendingSession, Snapshot

from .columns import Room
from .queueing import QueueingPolicy, in_bands


class LifoPolicy(QueueingPolicy):
    """Starts the session of one priority first that was submitted last; the oldest may wait for ever."""

    name = "lifo"

    def _queue(self, snapshot: Snapshot, room: Room) -> Iterable[PendingSession]:
        return in_bands(reversed(snapshot.pending))

"""What must be looked at when: deadlines of states, and start times of sessions that asked for one."""

from __future__ import annotations

import heapq

from backendai_ray.core.ids import SessionId


class Timetable:
    """Sessions by the time at which to look at them; an entry may be out of date, the looker checks."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, SessionId]] = []

    def add(self, at: float, session_id: SessionId) -> None:
        """Look at the session at that time (Unix seconds)."""
        heapq.heappush(self._heap, (at, session_id))

    def next_at(self) -> float | None:
        """Return when the next entry is due."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[SessionId]:
        """Take out and return the sessions whose time has come, each once."""
        found: dict[SessionId, None] = {}
        while self._heap and self._heap[0][0] <= now:
            found[heapq.heappop(self._heap)[1]] = None
        return list(found)

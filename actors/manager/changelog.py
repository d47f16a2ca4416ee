"""What happened in one resource group, numbered, so that a policy actor's snapshot stays warm."""

from __future__ import annotations

from collections import deque

from backendai_ray.core.ids import ResourceGroupName
from backendai_ray.core.scheduling import Change, Changes

RING = 20_000
"""Changes kept; whoever is further behind gets the whole world instead."""


class ChangeLog:
    """A bounded, numbered list of changes; numbers rise by one and start anew with each incarnation."""

    def __init__(self, group: ResourceGroupName, incarnation: str, *, ring: int = RING) -> None:
        self._group = group
        self._incarnation = incarnation
        self._ring: deque[Change] = deque(maxlen=ring)
        self.upto = 0

    def add(self, change: Change) -> None:
        """Note a change."""
        self._ring.append(change)
        self.upto += 1

    def since(self, incarnation: str, number: int) -> Changes | None:
        """Return what came after ``number``; ``None`` when only the whole world helps."""
        behind = self.upto - number
        if incarnation != self._incarnation or not 0 <= behind <= len(self._ring):
            return None
        start = len(self._ring) - behind
        recent = tuple(self._ring[i] for i in range(start, len(self._ring)))
        return self._as_changes(recent, full=False)

    def world(self, changes: tuple[Change, ...]) -> Changes:
        """Return the whole world as it is at the present number."""
        return self._as_changes(changes, full=True)

    def _as_changes(self, changes: tuple[Change, ...], *, full: bool) -> Changes:
        return Changes(
            resource_group=self._group,
            incarnation=self._incarnation,
            upto=self.upto,
            full=full,
            changes=changes,
        )

"""A clock that goes when told."""

from __future__ import annotations


class ManualClock:
    """Returns Unix seconds; every reading is a little later than the one before, as on a real machine."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

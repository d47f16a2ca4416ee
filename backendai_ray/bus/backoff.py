"""Waiting longer after each failure, so that what is away is not run over when it comes back."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Waits longer each time, with jitter, up to a bound."""

    def __init__(self, *, first_s: float = 0.05, most_s: float = 5.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s
        self._random = random.Random()

    async def wait(self) -> None:
        """Sleep."""
        await asyncio.sleep(self._next_s * self._random.uniform(0.5, 1.0))
        self._next_s = min(self._most_s, self._next_s * 2)

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next_s = self._first_s

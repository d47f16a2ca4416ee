"""Which images are asked for most, of late: what spares are made of."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from typing import Final

HALF_LIFE_S: Final = 600.0
"""After as long, a start counts half."""
FORGOTTEN: Final = 0.1
"""An image whose count has fallen below is asked for no more: one start is forgotten after some half hour."""


class Demand:
    """Counts starts by image; a count fades with :data:`HALF_LIFE_S`."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}

    def note(self, image: str, now: float) -> None:
        """A kernel of the image starts.

        Args:
            image: The image's id.
            now: Seconds of any clock that does not go back.
        """
        self._counts[image] = (self._count(image, now) + 1.0, now)

    def shares(self, places: int, now: float) -> dict[str, int]:
        """Divide places among the images, by how much each is asked for; none for those asked for no more.

        By highest averages (D'Hondt): whoever has the most starts per place gets the next one, so that places follow
        demand and an image asked for rarely does not keep one from another that is asked for all the time.
        """
        counts = {image: self._count(image, now) for image in self._counts}
        for image, count in counts.items():
            if count < FORGOTTEN:
                del self._counts[image]
        counts = {image: count for image, count in counts.items() if count >= FORGOTTEN}
        return _divided(places, counts)

    def _count(self, image: str, now: float) -> float:
        count, at = self._counts.get(image, (0.0, now))
        return count * exp(-log(2) * max(0.0, now - at) / HALF_LIFE_S)


def _divided(places: int, counts: Mapping[str, float]) -> dict[str, int]:
    shares: dict[str, int] = {}
    for _ in range(places if counts else 0):
        best = max(counts, key=lambda image: (counts[image] / (shares.get(image, 0) + 1), image))
        shares[best] = shares.get(best, 0) + 1
    return shares

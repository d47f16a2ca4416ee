"""What was in use, in pieces, out and waiting over time: what plots are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..columns import Floats
from .world import Usage


class Moment(NamedTuple):
    """How things stand from ``at`` on; units of the measured slot."""

    at: float
    busy: int
    pieces: int
    out: int
    """On nodes that have failed."""
    waiting: int
    """Sessions."""


@dataclass(slots=True)
class Timeline:
    """How things stood after each moment at which something happened."""

    moments: list[Moment] = field(default_factory=list)

    def note(self, now: float, usage: Usage, waiting: int) -> None:
        """Take note of how things stand."""
        moment = Moment(now, usage.busy, usage.pieces, usage.out, waiting)
        if self.moments and self.moments[-1].at == now:
            self.moments[-1] = moment
        elif not self.moments or self.moments[-1][1:] != moment[1:]:
            self.moments.append(moment)

    def means(self, edges: Floats) -> Floats:
        """Return the time-weighted means of busy, pieces, out and waiting (columns) between neighbouring edges."""
        if not self.moments:
            return np.zeros((len(edges) - 1, 4))
        table = np.array(self.moments, dtype=np.float64)
        at, values = table[:, 0], table[:, 1:]
        # The integral up to each moment; in between it is linear, before the first moment zero.
        whole = np.vstack([np.zeros(4), np.cumsum(values[:-1] * np.diff(at)[:, None], axis=0)])
        row = np.searchsorted(at, edges, side="right") - 1
        inside = np.maximum(row, 0)
        upto = whole[inside] + values[inside] * (edges - at[inside])[:, None]
        upto[row < 0] = 0.0
        result: Floats = np.diff(upto, axis=0) / np.maximum(np.diff(edges), 1e-12)[:, None]
        return result

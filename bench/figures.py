"""Figures: how they are summed up, printed and written.

A figure is a name, a unit and some samples; what is quoted is the median. On the terminal it is one line,
``name value unit``; the JSON file holds ``{"name", "unit", "median", "min", "max", "p99", "n"}`` each.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    def to_json(self) -> dict[str, object]:
        """Return the figure as the JSON file holds it."""
        ordered = sorted(self.samples)
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": ordered[0],
            "max": ordered[-1],
            "p99": ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))],
            "n": len(ordered),
        }


class Report:
    """The figures of one call, printed as they come."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, unit: str, samples: Sequence[float] | float) -> Figure:
        """Record a figure from its samples and print it."""
        values = (samples,) if isinstance(samples, int | float) else tuple(samples)
        figure = Figure(name, unit, tuple(float(v) for v in values))
        self.figures.append(figure)
        print(f"{figure.name} {figure.median:.4g} {figure.unit}", flush=True)
        return figure

    def ratio(self, name: str, ours: Figure, peer: Figure) -> Figure:
        """Record ours over the peer's, pair by pair where the samples were taken in turn, else of the medians."""
        if len(ours.samples) == len(peer.samples) and len(ours.samples) > 1:
            return self.add(name, "x", [a / b for a, b in zip(ours.samples, peer.samples, strict=True)])
        return self.add(name, "x", ours.median / peer.median)

    def write(self, path: Path) -> None:
        """Write all figures as JSON."""
        path.write_text(json.dumps([figure.to_json() for figure in self.figures], indent=2) + "\n")

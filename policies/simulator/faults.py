"""Nodes that fail: at random, drawn from a seed, or as a file says.

While a node is out nothing is placed there, and what ran there is lost, with all other kernels of the same session.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import merge
from random import Random

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId
from backendai_ray.core.scheduling import Node

from .reading import json_lines

_OURS = frozenset({"node", "at", "duration"})


class WhenLost(StrEnum):
    """What becomes of a session whose node failed."""

    REQUEUE = "requeue"
    """It waits again, with its first time of submission, and starts anew."""
    FAIL = "fail"
    """It has ended."""


@dataclass(frozen=True, slots=True, order=True)
class Outage:
    """A node is out from ``at`` until ``until``, seconds of the trace's time."""

    at: float
    agent_id: AgentId
    until: float
    """Infinite: it never comes back."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Which nodes fail when, and what that does."""

    outages: Sequence[Outage] = ()
    """In any order; those of one node may overlap."""
    mtbf_s: float | None = None
    """Mean time between failures of one node, from its repair to the next failure; ``None``: none at random."""
    mttr_s: float = 3600.0
    """Mean time to repair."""
    seed: int = 0
    when_lost: WhenLost = WhenLost.REQUEUE
    most_losses: int = 100
    """A session that was lost so often is given up, whatever ``when_lost`` says."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.mtbf_s is not None and not 0 < self.mtbf_s < math.inf:
            raise InvalidParameter(f"mtbf: {self.mtbf_s:g} is no time above 0; give seconds", field="mtbf")
        if not 0 < self.mttr_s < math.inf:
            raise InvalidParameter(f"mttr: {self.mttr_s:g} is no time above 0; give seconds", field="mttr")

    def of(self, nodes: Iterable[Node], begin: float) -> Iterator[Outage]:
        """Return all outages in the order of their beginning; without end when there are random ones.

        Each node draws from a seed of its own, so that another node in the list changes nothing for the rest.
        """
        drawn = [] if self.mtbf_s is None else [self._drawn(node.agent_id, begin, self.mtbf_s) for node in nodes]
        return merge(sorted(self.outages), *drawn)

    def _drawn(self, agent_id: AgentId, begin: float, mtbf_s: float) -> Iterator[Outage]:
        dice = Random(f"{self.seed}/{agent_id}")
        until = begin
        while True:
            at = until + dice.expovariate(1 / mtbf_s)
            until = at + dice.expovariate(1 / self.mttr_s)
            yield Outage(at, agent_id, until)


def read_outages(file: str, text: Iterable[str], nodes: Sequence[Node]) -> list[Outage]:
    """Read outages: JSON lines ``{"node": "n-0003", "at": 3600, "duration": 600}``; without a duration for ever.

    Args:
        file: Its name, for errors.
        text: Its lines.
        nodes: The cluster.

    Raises:
        InvalidParameter: it is not of that format, or names a node that is not there; the message says where.
    """
    known = {node.agent_id for node in nodes}
    outages: list[Outage] = []
    for line in json_lines(file, text, _OURS):
        agent_id, at = AgentId(line.text("node")), line.number_of("at")
        if agent_id not in known:
            raise line.error("node", f"there is no node {agent_id} in the node list")
        duration = math.inf if line.fields.get("duration") is None else line.number_of("duration")
        outages.append(Outage(at, agent_id, at + duration))
    return outages

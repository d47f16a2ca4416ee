"""Which *set* of whole devices is the better one for a kernel: the one place that says so.

Devices that say nothing of their links are judged by NUMA nodes alone; linked ones by what their links are worth
(:mod:`.links`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .slots import SlotName
    from .topology import SlotLayout

NO_NUMA = -1
"""The place of a device whose NUMA node is unknown; it is near to everything."""

EXACT_SETS = comb(16, 8)
"""Up to as many sets are compared one by one: any number of devices out of 16, two out of 160."""

_REMEMBERED = 1024
"""Answers kept per layout; a busy node has few states, and each is asked for again and again."""


class SetScorer(Protocol):
    """Chooses which whole devices go to one kernel."""

    def choose(self, layout: SlotLayout, free: Sequence[int], count: int, near: Sequence[int]) -> Sequence[int]:
        """Return ``count`` members of ``free`` (positions in the layout; there are at least that many).

        Args:
            layout: The slot's devices.
            free: Positions of the devices that are wholly free, ascending.
            count: How many are wanted.
            near: NUMA nodes of what was chosen for the kernel already, the most important first.
        """
        ...


class FewestNumaNodes:
    """The set that lies on the fewest NUMA nodes, nearest to what was chosen before, leaving big sets for others."""

    def choose(self, layout: SlotLayout, free: Sequence[int], count: int, near: Sequence[int]) -> Sequence[int]:
        """Return the chosen positions, ascending."""
        if len(layout.by_numa) == 1:
            return free[:count]
        by_numa: dict[int, list[int]] = defaultdict(list)
        for position in free:
            by_numa[layout.numa[position]].append(position)
        chosen: list[int] = []
        while len(chosen) < count:
            missing = count - len(chosen)
            node = min(by_numa, key=lambda n: _preference(n, len(by_numa[n]), missing, near))
            chosen += by_numa.pop(node)[:missing]
        return sorted(chosen)


def _preference(node: int, has: int, wanted: int, near: Sequence[int]) -> tuple[bool, int, int, int]:
    """Rank a NUMA node: one that suffices alone, then nearness, then the tightest fit (else the most), then number."""
    suffices = has >= wanted
    distance = near.index(node) if node in near else len(near)
    return not suffices, distance, has if suffices else -has, node


class BestLinked:
    """The set on the fewest NUMA nodes, of those the best linked, then the nearest, then the one that leaves the most.

    What a set leaves is the worth of all links among the devices that stay free. The choice is exact while there are
    at most :data:`EXACT_SETS` sets; beyond that the NUMA nodes are chosen first, as :class:`FewestNumaNodes` does, and
    where even these offer more sets, one is grown from each device by the best link, and the best of these is taken.
    """

    def __init__(self) -> None:
        self._without_links = FewestNumaNodes()
        self._known: dict[tuple[SlotName, tuple[int, ...], int, tuple[int, ...]], tuple[int, ...]] = {}

    def choose(self, layout: SlotLayout, free: Sequence[int], count: int, near: Sequence[int]) -> Sequence[int]:
        """Return the chosen positions, ascending."""
        if not layout.links or count in (0, len(free)):
            return self._without_links.choose(layout, free, count, near)
        # Of what is near, only NUMA nodes that have such devices tell two sets apart.
        key = (layout.slot, tuple(free), count, tuple(node for node in near if node in layout.by_numa))
        chosen = self._known.get(key)
        if chosen is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            chosen = self._known[key] = self._choose(layout, *key[1:])
        return chosen

    def _choose(self, layout: SlotLayout, free: tuple[int, ...], count: int, near: tuple[int, ...]) -> tuple[int, ...]:
        pool = free
        if comb(len(pool), count) > EXACT_SETS:
            nodes = {layout.numa[i] for i in self._without_links.choose(layout, free, count, near)}
            pool = tuple(i for i in free if layout.numa[i] in nodes)
        links = np.array([[layout.links[i][j] for j in pool] for i in pool], dtype=np.int64)
        is_small = comb(len(pool), count) <= EXACT_SETS
        sets = _all_sets(len(pool), count) if is_small else _grown_sets(links, count)
        leaves = np.array([sum(layout.links[i][j] for j in free) for i in pool], dtype=np.int64)
        best = _best_of(sets, links, leaves, [layout.numa[i] for i in pool], near)
        return tuple(pool[i] for i in np.flatnonzero(sets[best]).tolist())


@lru_cache(maxsize=32)
def _all_sets(size: int, count: int) -> NDArray[np.bool_]:
    """Return all sets of ``count`` out of ``size`` as rows of membership, in the order of their lowest members."""
    rows = np.array(list(combinations(range(size), count)), dtype=np.intp)
    members = np.zeros((len(rows), size), dtype=np.bool_)
    np.put_along_axis(members, rows, values=True, axis=1)
    members.flags.writeable = False
    return members


def _grown_sets(links: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return one set per device, grown from it by the best link each time."""
    starts = np.arange(len(links))
    members = np.eye(len(links), dtype=np.bool_)
    gains = links.copy()
    for _ in range(count - 1):
        added = np.where(members, -1, gains).argmax(axis=1)
        members[starts, added] = True
        gains += links[added]
    return members


def _best_of(
    sets: NDArray[np.bool_],
    links: NDArray[np.int64],
    worth: NDArray[np.int64],
    numa: Sequence[int],
    near: tuple[int, ...],
) -> int:
    """Return the row of the best set, the first among equals.

    Args:
        sets: Rows of membership.
        links: What the link of each pair is worth.
        worth: What each device's links to all free devices are worth together.
        numa: The NUMA node of each device.
        near: The NUMA nodes to be near to.
    """
    numbers = sets.astype(np.int64)
    # Both ends count, so it is twice the worth, which compares alike.
    scores = ((numbers @ links) * numbers).sum(axis=1)
    nodes = np.zeros(len(sets), dtype=np.int64)
    for node in {*numa} - {NO_NUMA}:
        nodes += sets[:, [place == node for place in numa]].any(axis=1)
    distance = {node: rank for rank, node in enumerate(near)} | {NO_NUMA: 0}
    far = numbers @ np.array([distance.get(node, len(near)) for node in numa], dtype=np.int64)
    rows = np.arange(len(sets))
    # Of sets with equal scores, the one whose members have the fewest links in all leaves the most for others.
    for cost in (nodes, -scores, far, numbers @ worth):
        here = cost[rows]
        rows = rows[here == here.min()]
    return int(rows[0])

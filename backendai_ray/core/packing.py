"""How the devices of one slot are picked, by kind: pure functions over columns.

Each returns pieces ``(position, units)``, or, when the free units are there but not in the right pieces, by how many
units the best device is short. The caller has checked that the total suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .device_sets import NO_NUMA, SetScorer
from .slots import UNITS_PER_COUNT, ResourceSlots, SlotKind, SlotName
from .topology import Layout, SlotLayout

Piece = tuple[int, int]


@dataclass(slots=True)
class NumaRoom:
    """What is free of one slot on each NUMA node: kept up to date, so that a request need not look at every device."""

    free: dict[int, int]
    """Free units by NUMA node, :data:`NO_NUMA` included; a device that is overfull counts as full."""
    idle: dict[int, int]
    """Devices of which nothing is used."""

    @classmethod
    def of(cls, layout: SlotLayout) -> NumaRoom:
        """Return the room of devices that are all free."""
        free = {numa: sum(layout.capacity[i] for i in positions) for numa, positions in layout.by_numa.items()}
        return cls(free, {numa: len(positions) for numa, positions in layout.by_numa.items()})

    def copy(self) -> NumaRoom:
        """Return one that changes on its own."""
        return NumaRoom(self.free.copy(), self.idle.copy())

    def on(self, numa: int) -> int:
        """Return the free units on a NUMA node; devices of no node count for each."""
        return self.free.get(numa, 0) + self.free.get(NO_NUMA, 0)

    def idle_on(self, numa: int) -> int:
        """Return how many devices on a NUMA node are idle; devices of no node count for each."""
        return self.idle.get(numa, 0) + self.idle.get(NO_NUMA, 0)


def home_numa_node(layout: Layout, rooms: Mapping[SlotName, NumaRoom], slots: ResourceSlots) -> tuple[int, ...]:
    """Return the NUMA node that suits the whole request best, as a tuple of one.

    It is the one on which the most slots fit, then on which idle cores suffice, then which is left with the least of
    the scarcest slot: other requests then find the roomier nodes untouched.
    """
    wanted = [
        (rooms[slot], needed, layout.slots[slot].kind is SlotKind.COUNT)
        for slot in layout.order
        if (needed := slots.amount(slot))
    ]
    best: tuple[int, bool, int, int] | None = None
    for node in layout.numa_nodes:
        misses, busy, left = 0, False, -1
        for room, needed, is_count in wanted:
            has = room.on(node)
            misses += needed > has
            if is_count and needed > room.idle_on(node) * UNITS_PER_COUNT:
                busy = True
            if left < 0:
                left = has - needed if has > needed else 0
        unsuitability = misses, busy, left, node
        if best is None or unsuitability < best:
            best = unsuitability
    return () if best is None else (best[-1],)


def _nearness(layout: SlotLayout, near: Sequence[int]) -> list[int]:
    """Return for every device how far it is from what was chosen: 0 is nearest; no NUMA node is near to all."""
    if not near:
        return [0] * len(layout.numa)
    rank = {node: distance for distance, node in enumerate(near)}
    rank[NO_NUMA] = 0
    return [rank.get(node, len(near)) for node in layout.numa]


def pick_whole(
    layout: SlotLayout, used: Sequence[int], needed: int, near: Sequence[int], scorer: SetScorer
) -> list[Piece] | int:
    """Pick devices that are given out whole."""
    count, odd = divmod(needed, UNITS_PER_COUNT)
    free = [i for i, capacity in enumerate(layout.capacity) if capacity == UNITS_PER_COUNT and used[i] == 0]
    if odd or len(free) < count:
        return max(odd, needed - len(free) * UNITS_PER_COUNT)
    return [(position, UNITS_PER_COUNT) for position in scorer.choose(layout, free, count, near)]


def pick_shares(layout: SlotLayout, used: Sequence[int], needed: int, near: Sequence[int]) -> list[Piece] | int:
    """Pick shares: one device, the tightest that suffices; above one device, whole ones and a remainder."""
    distance = _nearness(layout, near)
    free = {i: layout.capacity[i] - used[i] for i in range(len(used)) if layout.capacity[i] > used[i]}
    pieces: list[Piece] = []
    while needed:
        enough = [i for i, units in free.items() if units >= needed]
        if enough:
            pieces.append((min(enough, key=lambda i: (free[i], distance[i], i)), needed))
            return pieces
        whole = [i for i in free if used[i] == 0]
        if not whole:
            return needed - max(free.values(), default=0)
        position = min(whole, key=lambda i: (distance[i], -free[i], i))
        pieces.append((position, free[position]))
        needed -= free.pop(position)
    return pieces


def pick_bytes(layout: SlotLayout, used: Sequence[int], needed: int, near: Sequence[int]) -> list[Piece]:
    """Pick memory: near what was chosen, from one NUMA node if one suffices, else spread."""
    distance = _nearness(layout, near)
    free = [(i, layout.capacity[i] - used[i]) for i in range(len(used)) if layout.capacity[i] > used[i]]
    free.sort(key=lambda one: (distance[one[0]], one[1] < needed, one[1] if one[1] >= needed else -one[1], one[0]))
    pieces: list[Piece] = []
    for position, units in free:
        taken = min(units, needed)
        pieces.append((position, taken))
        needed -= taken
        if not needed:
            break
    return pieces


def pick_count(layout: SlotLayout, used: Sequence[int], needed: int, near: Sequence[int]) -> list[Piece]:
    """Pick cores: whole ones on distinct devices, then the remainder where it breaks no whole core."""
    whole, rest = divmod(needed, UNITS_PER_COUNT)
    chosen = _whole_cores(layout, used, whole, near) if whole else {}
    rest += (whole - sum(chosen.values())) * UNITS_PER_COUNT
    taken = {position: count * UNITS_PER_COUNT for position, count in chosen.items()}
    if rest:
        _fractions(layout, used, rest, _nearness(layout, near), taken)
    return list(taken.items())


def _whole_cores(layout: SlotLayout, used: Sequence[int], count: int, near: Sequence[int]) -> dict[int, int]:
    """Return how many whole cores to take of which device; fewer than asked when there are not as many.

    Cores given out more than once (overcommit) are loaded evenly: lap by lap, the least used first.
    """
    chosen: dict[int, int] = {}
    laps = max(layout.capacity) // UNITS_PER_COUNT if layout.overcommitted else 1
    for lap in range(laps):
        for position in _together(layout, _open_in_lap(layout, used, lap, chosen), count, near):
            chosen[position] = chosen.get(position, 0) + 1
            count -= 1
        if not count:
            break
    return chosen


_Open = Callable[[Iterable[int]], list[int]]
"""Picks out the devices that may be given a core."""


def _open_in_lap(layout: SlotLayout, used: Sequence[int], lap: int, chosen: Mapping[int, int]) -> _Open:
    capacity = layout.capacity
    if not lap:
        return lambda devices: [i for i in devices if not used[i] and capacity[i] >= UNITS_PER_COUNT]
    level = lap * UNITS_PER_COUNT
    return lambda devices: [
        i
        for i in devices
        if level - UNITS_PER_COUNT
        < used[i] + UNITS_PER_COUNT * chosen.get(i, 0)
        <= level
        <= capacity[i] - UNITS_PER_COUNT
    ]


def _together(layout: SlotLayout, open_of: _Open, count: int, near: Sequence[int]) -> list[int]:
    """Choose up to ``count`` devices: near ones first, hyper-thread siblings together, whole physical cores spared."""
    chosen: list[int] = []
    for nodes in _rings(layout, near):
        if layout.grouped:
            groups = [group for node in nodes for group in layout.groups[node]]
            chosen += _cores_together(groups, open_of, count - len(chosen))
        else:
            for node in nodes:
                chosen += open_of(layout.by_numa[node])[: count - len(chosen)]
        if len(chosen) == count:
            break
    return chosen


def _rings(layout: SlotLayout, near: Sequence[int]) -> list[list[int]]:
    """Return the NUMA nodes in rings around what was chosen, the nearest first."""
    if not near or len(layout.by_numa) == 1:
        return [list(layout.by_numa)]
    first = [node for node in (NO_NUMA, near[0]) if node in layout.by_numa]
    others = [[node] for node in near[1:] if node in layout.by_numa]
    return [first, *others, [node for node in layout.by_numa if node != NO_NUMA and node not in near]]


def _cores_together(groups: Sequence[tuple[int, ...]], open_of: _Open, count: int) -> list[int]:
    chosen: list[int] = []
    whole: list[tuple[int, ...]] = []
    broken: list[tuple[int, ...]] = []
    for group in groups:
        members = tuple(open_of(group))
        if len(members) == len(group):
            if count >= len(group):
                chosen += group
                count -= len(group)
                if not count:
                    return chosen
            else:
                whole.append(group)
        elif members:
            broken.append(members)
    while count and (broken or whole):
        source = broken or whole
        best = min(source, key=lambda m: (len(m) < count, len(m) if len(m) >= count else -len(m), m))
        source.remove(best)
        chosen += best[:count]
        count -= min(count, len(best))
    return chosen


def _fractions(
    layout: SlotLayout, used: Sequence[int], rest: int, distance: Sequence[int], taken: dict[int, int]
) -> None:
    """Add ``rest`` to ``taken``: best fit on a core that is shared already, split over leftovers only if it must be."""
    free = {
        i: capacity - used[i] - taken.get(i, 0)
        for i, capacity in enumerate(layout.capacity)
        if capacity > used[i] + taken.get(i, 0)
    }
    while rest:
        enough = [i for i, units in free.items() if units >= rest]
        if enough:
            best = min(enough, key=lambda i: (used[i] == 0, i in taken, distance[i], free[i], i))
            taken[best] = taken.get(best, 0) + rest
            return
        most = max(free, key=lambda i: (free[i], -distance[i], -i))
        taken[most] = taken.get(most, 0) + free[most]
        rest -= free.pop(most)

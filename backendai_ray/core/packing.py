"""How the devices of one slot are picked, by kind: pure functions over columns.

Each returns pieces ``(position, units)``, or, when the free units are there but not in the right pieces, by how many
units the best device is short. The caller has checked that the total suffices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .slots import UNITS_PER_COUNT, ResourceSlots, SlotKind, SlotName
from .topology import NO_NUMA, Layout, SetScorer, SlotLayout

Piece = tuple[int, int]


def home_numa_node(layout: Layout, used: Mapping[SlotName, Sequence[int]], slots: ResourceSlots) -> tuple[int, ...]:
    """Return the NUMA node that suits the whole request best, as a tuple of one.

    It is the one on which the most slots fit, then on which idle cores suffice, then which is left with the least of
    the scarcest slot: other requests then find the roomier nodes untouched.
    """
    wanted = [layout.slots[slot] for slot in layout.order if slots.amount(slot)]

    def unsuitability(node: int) -> tuple[int, bool, int, int]:
        misses, busy, left = 0, False, -1
        for one in wanted:
            room, idle = _room_on(one, used[one.slot], node)
            needed = slots.amount(one.slot)
            misses += needed > room
            busy |= one.kind is SlotKind.COUNT and needed > idle
            if left < 0:
                left = max(0, room - needed)
        return misses, busy, left, node

    return (min(layout.numa_nodes, key=unsuitability),)


def _room_on(layout: SlotLayout, used: Sequence[int], node: int) -> tuple[int, int]:
    """Return the free units on a NUMA node (devices of no node count for each), and the units of idle devices."""
    room = idle = 0
    for place, capacity, taken in zip(layout.numa, layout.capacity, used, strict=True):
        if place in (node, NO_NUMA) and taken < capacity:
            room += capacity - taken
            if taken == 0:
                idle += min(capacity, UNITS_PER_COUNT) if layout.kind is SlotKind.COUNT else capacity
    return room, idle


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
    distance = _nearness(layout, near)
    whole, rest = divmod(needed, UNITS_PER_COUNT)
    chosen = _whole_cores(layout, used, whole, distance)
    rest += (whole - sum(chosen.values())) * UNITS_PER_COUNT
    taken = {position: count * UNITS_PER_COUNT for position, count in chosen.items()}
    if rest:
        _fractions(layout, used, rest, distance, taken)
    return list(taken.items())


def _whole_cores(layout: SlotLayout, used: Sequence[int], count: int, distance: Sequence[int]) -> dict[int, int]:
    """Return how many whole cores to take of which device; fewer than asked when there are not as many.

    Cores given out more than once (overcommit) are loaded evenly: lap by lap, the least used first.
    """
    chosen: dict[int, int] = {}
    lap = 0
    laps = max(layout.capacity, default=0) // UNITS_PER_COUNT if layout.overcommitted else 1
    while count and lap < laps:
        level = lap * UNITS_PER_COUNT
        floor = level - UNITS_PER_COUNT
        open_now = [
            i
            for i, capacity in enumerate(layout.capacity)
            if floor < used[i] + UNITS_PER_COUNT * chosen.get(i, 0) <= level <= capacity - UNITS_PER_COUNT
        ]
        for position in _together(layout, open_now, count, distance):
            chosen[position] = chosen.get(position, 0) + 1
            count -= 1
        lap += 1
    return chosen


def _together(layout: SlotLayout, open_now: list[int], count: int, distance: Sequence[int]) -> list[int]:
    """Choose up to ``count`` devices: near ones first, hyper-thread siblings together, whole physical cores spared."""
    if len(layout.groups) == len(layout.ids):
        return sorted(open_now, key=distance.__getitem__)[:count] if any(distance) else open_now[:count]
    there = set(open_now)
    groups = [(tuple(i for i in group if i in there), len(group)) for group in layout.groups]
    chosen: list[int] = []
    for far in sorted(set(distance)):
        local = [(members, size) for members, size in groups if members and distance[members[0]] == far]
        whole = [members for members, size in local if len(members) == size]
        broken = [members for members, size in local if len(members) < size]
        while whole and count >= len(whole[0]):
            members = whole.pop(0)
            chosen += members
            count -= len(members)
        while count and (broken or whole):
            source = broken or whole
            members = min(source, key=lambda m: (len(m) < count, len(m) if len(m) >= count else -len(m), m))
            source.remove(members)
            chosen += members[:count]
            count -= min(count, len(members))
        if not count:
            break
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

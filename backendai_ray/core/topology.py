"""Which devices of a node belong together: the static side of the allocator.

A :class:`Layout` is made once for a node's devices and shared by every copy of its map. A :class:`SetScorer` is the
one place that says which *set* of whole devices is the better one; links between devices (NVLink, PCIe switches) are
taken into account by scoring them there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from .devices import Device
from .ids import DeviceId
from .slots import CPU, UNITS_PER_COUNT, SlotKind, SlotName, slot_kind

NO_NUMA = -1
"""The place of a device whose NUMA node is unknown; it is near to everything."""

_DIGITS = re.compile(r"(\d+)")


@lru_cache(maxsize=8192)
def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which ``gpu2`` comes before ``gpu10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(text) if part)


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The devices of one slot as columns; the index in them names the device inside the allocator."""

    slot: SlotName
    kind: SlotKind
    ids: tuple[DeviceId, ...]
    capacity: tuple[int, ...]
    numa: tuple[int, ...]
    by_numa: Mapping[int, tuple[int, ...]]
    """Positions by NUMA node, :data:`NO_NUMA` included."""
    groups: Mapping[int, tuple[tuple[int, ...], ...]]
    """By NUMA node: devices that share a physical core, in order; a device that shares nothing is alone."""
    grouped: bool
    """Whether any devices share a core."""
    index: Mapping[DeviceId, int]
    total: int
    overcommitted: bool
    """Whether a counted device is given out more than once (``cpu`` above one per core)."""

    def numa_nodes(self) -> tuple[int, ...]:
        """Return the NUMA nodes that have such devices."""
        return tuple(sorted(node for node in self.by_numa if node != NO_NUMA))


@dataclass(frozen=True, slots=True)
class Layout:
    """All devices of a node."""

    slots: Mapping[SlotName, SlotLayout]
    order: tuple[SlotName, ...]
    """In which slots are allocated: what is scarce and indivisible first, so that the rest can be chosen near it."""
    numa_nodes: tuple[int, ...]
    scorer: SetScorer = field(compare=False)

    @classmethod
    def of(cls, devices: Sequence[Device]) -> Layout:
        """Lay out a node's devices; nodes with equal devices share one layout.

        Raises:
            ValueError: two devices of one slot have the same id, or a capacity is negative.
        """
        return _layout(
            tuple((d.slot, d.id, d.capacity, d.numa_node, d.attributes.get("siblings", "")) for d in devices)
        )


_Row = tuple[SlotName, DeviceId, int, int | None, str]


@lru_cache(maxsize=4096)
def _layout(devices: tuple[_Row, ...]) -> Layout:
    by_slot: dict[SlotName, list[_Row]] = defaultdict(list)
    for device in devices:
        by_slot[device[0]].append(device)
    slots = {slot: _slot_layout(slot, members) for slot, members in sorted(by_slot.items())}
    nodes = {node for layout in slots.values() for node in layout.numa_nodes()}
    order = tuple(sorted(slots, key=lambda slot: (_ORDER[slots[slot].kind], slot)))
    return Layout(slots, order, tuple(sorted(nodes)), FewestNumaNodes())


_ORDER = {SlotKind.WHOLE: 0, SlotKind.SHARES: 1, SlotKind.COUNT: 2, SlotKind.BYTES: 3}


def _slot_layout(slot: SlotName, members: Sequence[_Row]) -> SlotLayout:
    if any(capacity < 0 for _, _, capacity, _, _ in members):
        raise ValueError(f"a {slot} device has a negative capacity")
    rows = sorted(
        (
            NO_NUMA if numa is None else numa,
            natural_key(_core_name(device, siblings)),
            natural_key(device),
            device,
            units,
        )
        for _, device, units, numa, siblings in members
    )
    index = {device: position for position, (_, _, _, device, _) in enumerate(rows)}
    if len(index) != len(rows):
        raise ValueError(f"two {slot} devices have the same id")
    by_numa: dict[int, list[int]] = defaultdict(list)
    cores: dict[int, dict[object, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, (numa, core, _, _, _) in enumerate(rows):
        by_numa[numa].append(position)
        cores[numa][core].append(position)
    capacity = tuple(units for _, _, _, _, units in rows)
    return SlotLayout(
        slot=slot,
        kind=slot_kind(slot),
        ids=tuple(index),
        capacity=capacity,
        numa=tuple(row[0] for row in rows),
        by_numa={numa: tuple(positions) for numa, positions in by_numa.items()},
        groups={numa: tuple(map(tuple, members.values())) for numa, members in cores.items()},
        grouped=any(len(group) > 1 for members in cores.values() for group in members.values()),
        index=index,
        total=sum(capacity),
        overcommitted=slot == CPU and max(capacity) > UNITS_PER_COUNT,
    )


def _core_name(device: str, siblings: str) -> str:
    """Return the name of the physical core: the first of the ``siblings`` (``0,32``), or the device itself."""
    names = [part.strip() for part in siblings.split(",") if part.strip()]
    return min([*names, device], key=natural_key)


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

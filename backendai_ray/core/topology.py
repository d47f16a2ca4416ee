"""Which devices of a node belong together: the static side of the allocator.

A :class:`Layout` is made once for a node's devices and shared by every copy of its map. Which *set* of whole devices is
the better one is said by its :class:`.device_sets.SetScorer`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from .device_sets import NO_NUMA, BestLinked, FewestNumaNodes, SetScorer
from .devices import Device
from .ids import DeviceId
from .links import LinkMatrix, Wiring, link_scores
from .slots import CPU, UNITS_PER_COUNT, SlotKind, SlotName, slot_kind

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
    links: LinkMatrix = ()
    """What the link of every pair is worth; empty where the devices say nothing of links or are not given out whole."""

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
        # Every pass lays thousands of nodes out, most of whose devices are cores: these must not pay for links.
        return _layout(
            tuple(
                [
                    (
                        d.slot,
                        d.id,
                        d.capacity,
                        d.numa_node,
                        ((a := d.attributes) and (a.get("siblings") or Wiring.of(a))) or "",
                    )
                    for d in devices
                ]
            )
        )


_Row = tuple[SlotName, DeviceId, int, int | None, "str | Wiring"]
"""Slot, id, capacity, NUMA node, and the siblings of a core or the wiring of another device."""


@lru_cache(maxsize=4096)
def _layout(devices: tuple[_Row, ...]) -> Layout:
    by_slot: dict[SlotName, list[_Row]] = defaultdict(list)
    for device in devices:
        by_slot[device[0]].append(device)
    slots = {slot: _slot_layout(slot, members) for slot, members in sorted(by_slot.items())}
    nodes = {node for layout in slots.values() for node in layout.numa_nodes()}
    order = tuple(sorted(slots, key=lambda slot: (_ORDER[slots[slot].kind], slot)))
    linked = any(layout.links for layout in slots.values())
    return Layout(slots, order, tuple(sorted(nodes)), BestLinked() if linked else FewestNumaNodes())


_ORDER = {SlotKind.WHOLE: 0, SlotKind.SHARES: 1, SlotKind.COUNT: 2, SlotKind.BYTES: 3}


def _slot_layout(slot: SlotName, members: Sequence[_Row]) -> SlotLayout:
    if any(capacity < 0 for _, _, capacity, _, _ in members):
        raise ValueError(f"a {slot} device has a negative capacity")
    rows = sorted(
        (
            NO_NUMA if numa is None else numa,
            natural_key(_core_name(device, told if isinstance(told, str) else "")),
            natural_key(device),
            device,
            units,
        )
        for _, device, units, numa, told in members
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
    kind = slot_kind(slot)
    return SlotLayout(
        slot=slot,
        kind=kind,
        ids=tuple(index),
        capacity=capacity,
        numa=tuple(row[0] for row in rows),
        by_numa={numa: tuple(positions) for numa, positions in by_numa.items()},
        groups={numa: tuple(map(tuple, members.values())) for numa, members in cores.items()},
        grouped=any(len(group) > 1 for members in cores.values() for group in members.values()),
        index=index,
        total=sum(capacity),
        overcommitted=slot == CPU and max(capacity) > UNITS_PER_COUNT,
        links=_links(tuple(index), members) if kind is SlotKind.WHOLE else (),
    )


def _links(ids: Sequence[DeviceId], members: Sequence[_Row]) -> LinkMatrix:
    wiring = {device: told if isinstance(told, Wiring) else None for _, device, _, _, told in members}
    numa_nodes = {device: numa for _, device, _, numa, _ in members}
    return link_scores(ids, [wiring[device] for device in ids], [numa_nodes[device] for device in ids])


def _core_name(device: str, siblings: str) -> str:
    """Return the name of the physical core: the first of the ``siblings`` (``0,32``), or the device itself."""
    names = [part.strip() for part in siblings.split(",") if part.strip()]
    return min([*names, device], key=natural_key)

"""Devices of one node and who holds how much of which: the records.

The allocator over them is :mod:`backendai_ray.core.allocator`; agent, Manager and policies share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .ids import DeviceId
from .slots import ResourceSlots, SlotName


@dataclass(frozen=True, slots=True)
class Device:
    """One device that a node gives out, whole or in parts."""

    slot: SlotName
    id: DeviceId
    capacity: int
    """In the slot's units: 1000 for one CPU core or one GPU, bytes for memory."""
    numa_node: int | None = None
    model: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What a plug-in knows beside: hyper-thread siblings as ``siblings``, links as :mod:`.links` describes them."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much of which devices one kernel holds: ``(slot, device, units)``, sorted, each pair once."""

    parts: tuple[tuple[SlotName, DeviceId, int], ...] = ()

    @classmethod
    def of(cls, parts: Iterable[tuple[SlotName, DeviceId, int]]) -> Allocation:
        """Build from parts in any order; parts of the same device add up, zero parts vanish."""
        sums: dict[tuple[SlotName, DeviceId], int] = {}
        for slot, device, units in parts:
            sums[slot, device] = sums.get((slot, device), 0) + units
        return cls(tuple((slot, device, units) for (slot, device), units in sorted(sums.items()) if units))

    def slots(self) -> ResourceSlots:
        """Return the sums by slot."""
        sums: dict[str, int] = {}
        for slot, _, units in self.parts:
            sums[slot] = sums.get(slot, 0) + units
        return ResourceSlots(sums)

    def devices(self, slot: str) -> dict[DeviceId, int]:
        """Return device → units of one slot."""
        return {device: units for name, device, units in self.parts if name == slot}

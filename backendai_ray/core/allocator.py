"""The one allocator: which devices of a node a kernel gets.

The agent gives devices out with it, the Manager re-checks plans with it, and policies plan with it on their mirror of
the node, so what was planned on a mirror fits on the original. It is deterministic and counts in exact integers.

How a slot is given out depends on its kind: memory may be spread over NUMA nodes; counted slots (``cpu``) take whole
cores on distinct devices and put a fractional remainder where it leaves the most cores whole; whole devices go out as
sets chosen by :class:`.device_sets.SetScorer`; shares of a device are packed best-fit and never split below one device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .devices import Allocation, Device
from .errors import Conflict
from .ids import DeviceId, KernelId
from .packing import NumaRoom, Piece, home_numa_node, pick_bytes, pick_count, pick_shares, pick_whole
from .slots import ResourceSlots, SlotKind, SlotName, format_amount
from .topology import Layout, SlotLayout


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a request does not fit on a node now."""

    slot: SlotName
    needed: int
    short_by: int
    """Units missing; of a fragmented slot, missing on the best device."""
    fragmented: bool = False
    """The total would suffice, but not in pieces of the right size."""

    def __str__(self) -> str:
        needed, short_by = format_amount(self.slot, self.needed), format_amount(self.slot, self.short_by)
        if self.fragmented:
            return f"{self.slot} {needed} is free only in pieces (the best fit is short by {short_by})"
        return f"{self.slot} {needed} is short by {short_by}"


class DeviceMap:
    """The devices of one node and who holds how much of which.

    A map is changed only by :meth:`hold` and :meth:`release`; :meth:`copy` is cheap, and a copy never changes its
    original.
    """

    __slots__ = ("_free", "_held", "_layout", "_rooms", "_used")

    def __init__(self, devices: Sequence[Device] | Layout, held: Mapping[KernelId, Allocation] | None = None) -> None:
        """Make a map; what is held already is a fact and is taken as it is.

        Held parts of devices that are not there (a broken GPU) are remembered but count nowhere, and a device that
        is held beyond its capacity counts as full.

        Args:
            devices: The node's devices, or a layout of them made before.
            held: What kernels hold.

        Raises:
            ValueError: two devices of one slot have the same id, or a capacity is negative.
        """
        self._layout = devices if isinstance(devices, Layout) else Layout.of(devices)
        self._used = {slot: [0] * len(layout.ids) for slot, layout in self._layout.slots.items()}
        self._free = {slot: layout.total for slot, layout in self._layout.slots.items()}
        self._rooms = {slot: NumaRoom.of(layout) for slot, layout in self._layout.slots.items()}
        self._held: dict[KernelId, Allocation] = {}
        for kernel_id, allocation in (held or {}).items():
            self.adopt(kernel_id, allocation)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def layout(self) -> Layout:
        """The devices themselves, shared by all copies."""
        return self._layout

    @property
    def held(self) -> Mapping[KernelId, Allocation]:
        """What each kernel holds; a live view."""
        return MappingProxyType(self._held)

    def capacity(self) -> ResourceSlots:
        """Return what the node has in all."""
        return ResourceSlots((slot, layout.total) for slot, layout in self._layout.slots.items())

    def free(self) -> ResourceSlots:
        """Return what is free in all."""
        return ResourceSlots(self._free.items())

    def free_units(self, slot: str) -> int:
        """Return how much of one slot is free, zero when the node has none."""
        return self._free.get(SlotName(slot), 0)

    def capacity_units(self, slot: str) -> int:
        """Return how much the node has of one slot in all, zero when it has none."""
        layout = self._layout.slots.get(SlotName(slot))
        return 0 if layout is None else layout.total

    def free_by_device(self, slot: SlotName) -> dict[DeviceId, int]:
        """Return what is free of each device of a slot; empty when the node has none."""
        layout = self._layout.slots.get(slot)
        return {} if layout is None else dict(zip(layout.ids, _free_units(layout, self._used[slot]), strict=True))

    def free_of_each(self, slot: SlotName) -> list[int]:
        """Return what is free of each device of a slot, in the layout's order; empty when the node has none."""
        layout = self._layout.slots.get(slot)
        return [] if layout is None else _free_units(layout, self._used[slot])

    def copy(self) -> DeviceMap:
        """Return a map that changes on its own."""
        twin = DeviceMap.__new__(DeviceMap)
        twin._layout = self._layout
        twin._used = {slot: used.copy() for slot, used in self._used.items()}
        twin._free = self._free.copy()
        twin._rooms = {slot: room.copy() for slot, room in self._rooms.items()}
        twin._held = self._held.copy()
        return twin

    def emptied(self) -> DeviceMap:
        """Return a map of the same devices of which nothing is held."""
        return DeviceMap(self._layout)

    def fits(self, slots: ResourceSlots) -> bool:
        """Return whether :meth:`allocate` would find devices."""
        return isinstance(self.allocate(slots), Allocation)

    def shortages(self, slots: ResourceSlots) -> ResourceSlots:
        """Return by how much each slot's total is short; empty when the totals suffice."""
        return slots.shortfall(ResourceSlots(self._free.items()))

    def allocate(self, slots: ResourceSlots) -> Allocation | Shortage:
        """Choose devices for a request; nothing is held by this.

        A request whose slots are all divisible is refused only when a total does not suffice.
        """
        for name, needed in slots.items():
            free = self._free.get(SlotName(name), 0)
            if needed > free:
                return Shortage(SlotName(name), needed, needed - free)
        near: Sequence[int] = ()
        if len(self._layout.numa_nodes) > 1:
            near = home_numa_node(self._layout, self._rooms, slots)
        parts: list[tuple[SlotName, DeviceId, int]] = []
        for slot in self._layout.order:
            needed = slots.amount(slot)
            if not needed:
                continue
            layout = self._layout.slots[slot]
            picked = self._pick(layout, needed, near)
            if isinstance(picked, int):
                return Shortage(slot, needed, picked, fragmented=True)
            parts += [(slot, layout.ids[position], units) for position, units in picked]
            if layout.kind in (SlotKind.WHOLE, SlotKind.SHARES):
                near = _numa_nodes_of(layout, picked) or near
        parts.sort()
        return Allocation(tuple(parts))

    def _pick(self, layout: SlotLayout, needed: int, near: Sequence[int]) -> list[Piece] | int:
        used = self._used[layout.slot]
        match layout.kind:
            case SlotKind.COUNT:
                return pick_count(layout, used, needed, near)
            case SlotKind.BYTES:
                return pick_bytes(layout, used, needed, near)
            case SlotKind.WHOLE:
                return pick_whole(layout, used, needed, near, self._layout.scorer)
            case SlotKind.SHARES:
                return pick_shares(layout, used, needed, near)

    # ── changing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, kernel_id: KernelId, allocation: Allocation) -> None:
        """Give devices to a kernel; repeating it changes nothing.

        Raises:
            Conflict: a device is not there or has not that much free, a whole device would be divided, or the kernel
                holds other devices already. Nothing is changed then.
        """
        known = self._held.get(kernel_id)
        if known is not None:
            if known != allocation:
                raise Conflict(f"kernel {kernel_id} holds other devices already", kernel_id=kernel_id)
            return
        parts = allocation.parts
        if len({(slot, device) for slot, device, _ in parts}) < len(parts):
            parts = Allocation.of(parts).parts  # parts of one device count together
        for slot, device, units in parts:
            if units:
                self._check(slot, device, units)
        self._held[kernel_id] = allocation
        self._change(allocation.parts, 1)

    def _check(self, slot: SlotName, device: DeviceId, units: int) -> None:
        layout = self._layout.slots.get(slot)
        position = None if layout is None else layout.index.get(device)
        if layout is None or position is None:
            raise Conflict(f"the node has no {slot} device {device}", slot=slot, device=device)
        capacity, used = layout.capacity[position], self._used[slot][position]
        if units < 0 or used + units > capacity:
            wanted, free = format_amount(slot, max(0, units)), format_amount(slot, max(0, capacity - used))
            raise Conflict(f"{slot} device {device} has {free} free, not {wanted}", slot=slot, device=device)
        if layout.kind is SlotKind.WHOLE and units != capacity:
            raise Conflict(f"{slot} device {device} is given out whole only", slot=slot, device=device)

    def adopt(self, kernel_id: KernelId, allocation: Allocation) -> None:
        """Take over what a kernel holds as a fact, without a check; it replaces what was known of the kernel."""
        self.release(kernel_id)
        self._held[kernel_id] = allocation
        self._change(allocation.parts, 1)

    def release(self, kernel_id: KernelId) -> Allocation:
        """Take a kernel's devices back and return them; of an unknown kernel, nothing."""
        allocation = self._held.pop(kernel_id, None)
        if allocation is None:
            return Allocation()
        self._change(allocation.parts, -1)
        return allocation

    def _change(self, parts: Iterable[tuple[SlotName, DeviceId, int]], sign: int) -> None:
        of: SlotName | None = None
        for slot, device, units in parts:
            if slot != of:  # parts come sorted by slot
                of, layout = slot, self._layout.slots.get(slot)
                if layout is not None:
                    used, room = self._used[slot], self._rooms[slot]
            position = None if layout is None else layout.index.get(device)
            if layout is None or position is None:
                continue
            before, capacity, numa = used[position], layout.capacity[position], layout.numa[position]
            after = used[position] = before + sign * units
            freed = (capacity - after if capacity > after else 0) - (capacity - before if capacity > before else 0)
            self._free[slot] += freed
            room.free[numa] += freed
            room.idle[numa] += (after == 0) - (before == 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviceMap):
            return NotImplemented
        same = self._layout == other._layout and self._used == other._used and self._held == other._held
        return same and self._free == other._free and self._rooms == other._rooms

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"DeviceMap(free={self.free()!r}, kernels={len(self._held)})"


def _free_units(layout: SlotLayout, used: Sequence[int]) -> list[int]:
    return [max(0, capacity - taken) for capacity, taken in zip(layout.capacity, used, strict=True)]


def _numa_nodes_of(layout: SlotLayout, picked: Sequence[Piece]) -> tuple[int, ...]:
    """Return the NUMA nodes of the chosen devices, the one with the most of them first."""
    units: dict[int, int] = {}
    for position, amount in picked:
        node = layout.numa[position]
        if node >= 0:
            units[node] = units.get(node, 0) + amount
    return tuple(sorted(units, key=lambda node: (-units[node], node)))

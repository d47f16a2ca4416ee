"""The nodes of a resource group as columns, and the room that is left on them during one pass.

A pass over thousands of nodes is a few numpy operations per session instead of a loop over nodes. Only the node that
is chosen in the end is looked at device by device, by the one allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.scheduling import Node
from backendai_ray.core.slots import ResourceSlots

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """Nodes (rows) by slots (columns), in units; what a selection scores."""

    slots: tuple[str, ...]
    capacity: Ints
    free: Ints
    """Changes while a pass goes on."""

    def column(self, slot: str) -> int | None:
        """Return the column of a slot; ``None`` when no node has it."""
        return self.slots.index(slot) if slot in self.slots else None

    @classmethod
    def of(cls, maps: Sequence[DeviceMap]) -> Columns:
        """Lay out the totals of some maps."""
        slots = tuple(sorted({slot for one in maps for slot in one.layout.slots}))
        capacity = np.zeros((len(maps), len(slots)), dtype=np.int64)
        free = np.zeros_like(capacity)
        for row, one in enumerate(maps):
            capacity[row] = [one.capacity_units(slot) for slot in slots]
            free[row] = [one.free_units(slot) for slot in slots]
        return cls(slots, capacity, free)


class Room:
    """What is free on the nodes while one pass goes on: placing takes from it, undoing gives back."""

    def __init__(self, nodes: Sequence[Node], maps: Sequence[DeviceMap], columns: Columns) -> None:
        """Open a room; neither the maps nor the columns given are changed.

        Args:
            nodes: The nodes, one per row.
            maps: Their device maps.
            columns: Their totals.
        """
        self.nodes = nodes
        self.columns = Columns(columns.slots, columns.capacity, columns.free.copy())
        self.touched: list[int] = []
        """Rows in the order in which they changed; a reader remembers how far it has read."""
        self._column = {slot: index for index, slot in enumerate(columns.slots)}
        self._maps = maps
        self._own: dict[int, DeviceMap] = {}
        self._placed: list[tuple[int, KernelId]] = []
        self._masks: dict[Hashable, Mask] = {}

    def mask(self, key: Hashable, holds: Callable[[Node], bool]) -> Mask:
        """Return for which rows something holds that does not change while the pass goes on; made once per key."""
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = np.array([holds(node) for node in self.nodes], dtype=np.bool_)
        return mask

    def map(self, row: int) -> DeviceMap:
        """Return a node's devices as they stand now; read only."""
        return self._own.get(row) or self._maps[row]

    def node(self, row: int) -> Node:
        """Return the node with what is held on it now."""
        own = self._own.get(row)
        return self.nodes[row] if own is None else replace(self.nodes[row], held=MappingProxyType(dict(own.held)))

    def needs(self, slots: ResourceSlots) -> list[tuple[int, int]] | None:
        """Return ``(column, units)`` of a request; ``None`` when it asks for a slot that no node has."""
        if any(slot not in self._column for slot in slots):
            return None
        return [(self._column[slot], units) for slot, units in slots.items()]

    def place(self, row: int, kernel_id: KernelId, slots: ResourceSlots) -> Allocation | Shortage:
        """Hold devices of a node for a kernel, if they can be had."""
        found = self.map(row).allocate(slots)
        if isinstance(found, Shortage):
            return found
        self._own_map(row).adopt(kernel_id, found)  # found on this very map, so it is free
        self._holds(row, kernel_id, slots)
        return found

    def hold(self, row: int, kernel_id: KernelId, allocation: Allocation) -> None:
        """Take devices of a node that were chosen elsewhere.

        Raises:
            Conflict: they are not free.
        """
        self._own_map(row).hold(kernel_id, allocation)
        self._holds(row, kernel_id, allocation.slots())

    def _own_map(self, row: int) -> DeviceMap:
        """Return the pass's own copy of a node's map."""
        own = self._own.get(row)
        if own is None:
            own = self._own[row] = self._maps[row].copy()
        return own

    def _holds(self, row: int, kernel_id: KernelId, slots: ResourceSlots) -> None:
        self._placed.append((row, kernel_id))
        self._changed(row, slots, -1)

    def placed(self) -> Sequence[tuple[int, KernelId]]:
        """Return row and kernel of what has been placed in the pass so far."""
        return self._placed

    def mark(self) -> int:
        """Return a point that :meth:`undo_to` can go back to."""
        return len(self._placed)

    def undo_to(self, mark: int) -> None:
        """Take back all placements made after the mark."""
        while len(self._placed) > mark:
            row, kernel_id = self._placed.pop()
            self._changed(row, self._own[row].release(kernel_id).slots(), 1)

    def release(self, row: int, kernel_id: KernelId) -> None:
        """Give back what was held in this pass, whenever that was; of what it does not know, nothing.

        Not between a :meth:`mark` and its :meth:`undo_to`.
        """
        if (row, kernel_id) in self._placed:
            self._placed.remove((row, kernel_id))
            self._changed(row, self._own[row].release(kernel_id).slots(), 1)

    def without(self, gone: Iterable[tuple[int, KernelId]]) -> Room:
        """Return a room of its own, as this one would be if some kernels were gone (given by row)."""
        twin = Room(self.nodes, self._maps, self.columns)
        twin._masks = self._masks
        twin._own = {row: own.copy() for row, own in self._own.items()}
        for row, kernel_id in gone:
            own = twin._own.get(row)
            if own is None:
                own = twin._own[row] = self._maps[row].copy()
            own.release(kernel_id)
            twin.columns.free[row] = [own.free_units(slot) for slot in twin.columns.slots]
        return twin

    def _changed(self, row: int, slots: ResourceSlots, sign: int) -> None:
        for slot, units in slots.items():
            self.columns.free[row, self._column[slot]] += sign * units
        self.touched.append(row)


class RoomCache:
    """Keeps the columns and maps of the last snapshot, so that opening a room costs what has changed since.

    It is a memo and nothing else: a room opened from a fresh cache is the same.
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._maps: list[DeviceMap] = []
        self._columns = Columns.of(())

    def open(self, nodes: Sequence[Node]) -> Room:
        """Return the room on these nodes."""
        if [node.agent_id for node in nodes] != [node.agent_id for node in self._nodes]:
            self._start_over(nodes)
        else:
            self._refresh(nodes)
        return Room(self._nodes, self._maps, self._columns)

    def _start_over(self, nodes: Sequence[Node]) -> None:
        known: dict[AgentId, tuple[Node, DeviceMap]] = {
            node.agent_id: (node, one) for node, one in zip(self._nodes, self._maps, strict=True)
        }
        self._maps = [_device_map(node, known.get(node.agent_id)) for node in nodes]
        self._nodes = list(nodes)
        self._columns = Columns.of(self._maps)

    def _refresh(self, nodes: Sequence[Node]) -> None:
        maps, known_slots = self._maps, set(self._columns.slots)
        changed = [row for row, node in enumerate(nodes) if node is not self._nodes[row]]
        if not changed:
            return
        # Rooms opened before share these lists; they are replaced, not changed.
        maps = list(maps)
        for row in changed:
            maps[row] = _device_map(nodes[row], (self._nodes[row], maps[row]))
        self._nodes, self._maps = list(nodes), maps
        if any(slot not in known_slots for row in changed for slot in maps[row].layout.slots):
            self._columns = Columns.of(maps)
            return
        columns = Columns(self._columns.slots, self._columns.capacity.copy(), self._columns.free.copy())
        for row in changed:
            columns.capacity[row] = [maps[row].capacity_units(slot) for slot in columns.slots]
            columns.free[row] = [maps[row].free_units(slot) for slot in columns.slots]
        self._columns = columns


def _device_map(node: Node, known: tuple[Node, DeviceMap] | None) -> DeviceMap:
    """Return the node's map, made from an earlier one of the same devices where there is one."""
    if known is None:
        return DeviceMap(node.devices, node.held)
    old, old_map = known
    if old is node:
        return old_map
    if old.devices is not node.devices and old.devices != node.devices:
        return DeviceMap(node.devices, node.held)
    changed = old_map.copy()
    for kernel_id in old.held:
        if kernel_id not in node.held:
            changed.release(kernel_id)
    for kernel_id, allocation in node.held.items():
        if old.held.get(kernel_id) is not allocation:
            changed.adopt(kernel_id, allocation)
    return changed

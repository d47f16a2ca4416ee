"""A node as text: what is where, and who holds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from backendai_ray.cli.usage_text import node_usage_text
from backendai_ray.client import DeviceInfo, NicInfo, NodeDetail, NumaNodeInfo
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, SlotKind, format_amount, slot_kind

FREE = "free"
LEGEND = {
    "NV": "NV#: that many NVLinks",
    "PIX": "PIX: one PCIe switch",
    "PXB": "PXB: several PCIe switches",
    "PHB": "PHB: the host bridge",
    "NODE": "NODE: one socket",
    "SYS": "SYS: between sockets",
}

_Holders = Mapping[tuple[str, str], Sequence[tuple[str, int]]]
"""By slot and device: who holds how many units."""


def draw_node(node: NodeDetail) -> Iterator[str]:
    """Yield the lines."""
    holders = _holders_of(node)
    state = node.status if node.schedulable else f"{node.status}, takes nothing new: {node.message}"
    yield f"{node.id}  {state}"
    yield f"  {node.backend} on {node.architecture}, resource group {node.resource_group}"
    for note in node.notes:
        yield f"  note: {note}"
    if node.usage is not None:
        yield f"  in use: {node_usage_text(node.usage)}"
    for line in _memory(node, holders):
        yield f"  {line}"
    socket = None
    for numa in node.numa_nodes:
        if numa.socket != socket:
            socket = numa.socket
            yield ""
            yield f"socket {socket}" if socket else "socket unknown"
        yield from _numa_node(node, numa, holders)
    yield from _elsewhere(node, holders)
    yield from _links(node)


def _holders_of(node: NodeDetail) -> _Holders:
    holders: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for holding in node.holdings:
        is_gang = sum(other.session_id == holding.session_id for other in node.holdings) > 1
        name = f"{holding.session_name} ({holding.hostname})" if is_gang else holding.session_name
        for slot, parts in holding.devices.items():
            for device, units in parts.items():
                holders[slot, device].append((name, units))
    return holders


def _memory(node: NodeDetail, holders: _Holders) -> Iterator[str]:
    for device in node.devices:
        if slot_kind(device.slot) is SlotKind.BYTES:
            held = holders.get((device.slot, device.id), ())
            used = sum(units for _, units in held)
            by = ", ".join(f"{name} {_size(units)}" for name, units in held)
            yield f"{device.slot} {_size(used)} of {_size(device.capacity)} held" + (f": {by}" if by else "")


def _numa_node(node: NodeDetail, numa: NumaNodeInfo, holders: _Holders) -> Iterator[str]:
    cores = [device for device in node.devices if device.slot == CPU and device.numa_node == numa.id]
    yield f"  NUMA node {numa.id}: cores {_ranges(numa.cpus) or 'none'}, memory {_size(numa.memory_bytes)}"
    rows = [*_cores(cores, holders), *_accelerators(node, numa.id, holders), *_cards(node.nics, numa.id)]
    yield from _aligned(rows)


def _elsewhere(node: NodeDetail, holders: _Holders) -> Iterator[str]:
    """Draw what lies on no NUMA node that the node tells of."""
    known = {numa.id for numa in node.numa_nodes}
    cores = [device for device in node.devices if device.slot == CPU and device.numa_node not in known]
    places = {device.numa_node for device in node.devices if device.slot not in (CPU, MEM)}
    places |= {nic.numa_node for nic in node.nics}
    rows = list(_cores(cores, holders))
    for place in sorted(places - known, key=lambda one: -1 if one is None else one):
        rows += [*_accelerators(node, place, holders), *_cards(node.nics, place)]
    if rows:
        yield ""
        yield "on no NUMA node that is known"
        yield from _aligned(rows)


def _cores(cores: Iterable[DeviceInfo], holders: _Holders) -> Iterator[tuple[str, str]]:
    """Yield runs of cores that the same kernels hold alike."""
    groups: dict[str, list[int]] = defaultdict(list)
    for core in cores:
        groups[_holder_text(core, holders)].append(int(core.id))
    for text, numbers in sorted(groups.items(), key=lambda group: (group[0] == FREE, min(group[1]))):
        yield f"cores {_ranges(numbers)}", text


def _accelerators(node: NodeDetail, place: int | None, holders: _Holders) -> Iterator[tuple[str, str]]:
    for device in node.devices:
        if device.slot != CPU and slot_kind(device.slot) is not SlotKind.BYTES and device.numa_node == place:
            memory = device.attributes.get("memory", "")
            size = f" {_size(int(memory))}" if memory.isdecimal() else ""
            what = f"{device.label or device.id}  {device.slot}  {device.model}{size}".rstrip()
            yield what, _holder_text(device, holders)


def _cards(nics: Iterable[NicInfo], place: int | None) -> Iterator[tuple[str, str]]:
    for nic in nics:
        if nic.numa_node == place:
            speed = f" {nic.speed_mbps / 1000:g} Gb/s" if nic.speed_mbps else ""
            yield f"{nic.name}  {nic.kind}{speed}", "" if nic.is_up else "down"


def _holder_text(device: DeviceInfo, holders: _Holders) -> str:
    held = holders.get((device.slot, device.id), ())
    if not held:
        return FREE
    if len(held) == 1 and held[0][1] >= min(device.capacity, UNITS_PER_COUNT):
        return held[0][0]
    parts = [f"{name} {format_amount(device.slot, units)}" for name, units in held]
    left = device.capacity - sum(units for _, units in held)
    return ", ".join([*parts, *([f"{FREE} {format_amount(device.slot, left)}"] if left > 0 else [])])


def _aligned(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(what) for what, _ in rows), default=0)
    for what, who in rows:
        yield f"    {what.ljust(width)}  {who}".rstrip()


def _links(node: NodeDetail) -> Iterator[str]:
    names, rows = node.links.names, node.links.rows
    if not names:
        return
    width = max(len(name) for name in (*names, "NODE")) + 2
    yield ""
    yield "links".ljust(width) + "".join(name.ljust(width) for name in names).rstrip()
    for name, row in zip(names, rows, strict=True):
        yield name.ljust(width) + "".join(cell.ljust(width) for cell in row).rstrip()
    used = {cell.rstrip("0123456789") for row in rows for cell in row}
    yield "  " + "; ".join(text for mark, text in LEGEND.items() if mark in used)


def _ranges(numbers: Iterable[int]) -> str:
    """Return ``0-3,8`` for numbers."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _size(size: int) -> str:
    """Return bytes as people read them, rounded where they are no round number."""
    for unit, suffix in ((2**40, "t"), (2**30, "g"), (2**20, "m")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + suffix
    return str(size)

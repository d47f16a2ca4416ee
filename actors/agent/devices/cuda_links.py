"""How GPUs are linked, from what NVML and sysfs say, in the words of :mod:`backendai_ray.core.links`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .nvml import SWITCH, Gpu

SINGLE, MULTIPLE, HOST_BRIDGE, NODE = 10, 20, 30, 40
"""NVML's levels of the common ancestor: one PCIe switch, several, the host bridge, the NUMA node."""

Levels = Mapping[tuple[str, str], int]


def nvlink_lanes(gpus: Sequence[Gpu]) -> dict[str, dict[str, int]]:
    """Return the NVLink lanes between GPUs by UUID; through NVSwitches, as many as the one with fewer has."""
    by_address = {gpu.address: gpu for gpu in gpus}
    lanes: dict[str, dict[str, int]] = {gpu.uuid: {} for gpu in gpus}
    for gpu in gpus:
        for address, count in gpu.nvlinks.items():
            peer = by_address.get(address)
            if peer is not None and peer is not gpu:
                most = max(count, lanes[peer.uuid].get(gpu.uuid, 0))
                lanes[gpu.uuid][peer.uuid] = lanes[peer.uuid][gpu.uuid] = most
    # Older drivers do not say that a peer is a switch; but it is no GPU of ours.
    switched = {
        gpu.uuid: sum(count for address, count in gpu.nvlinks.items() if address == SWITCH or address not in by_address)
        for gpu in gpus
    }
    for one in gpus:
        for other in gpus:
            through = min(switched[one.uuid], switched[other.uuid])
            if one is not other and through:
                lanes[one.uuid][other.uuid] = lanes[one.uuid].get(other.uuid, 0) + through
    return lanes


def ways_by_ancestors(uuids: Sequence[str], levels: Levels) -> dict[str, str]:
    """Return ``pcie`` attributes that say what NVML's common ancestors say, where sysfs tells nothing of the tree."""
    bridges = _groups(uuids, levels, HOST_BRIDGE)
    outer = _groups(uuids, levels, MULTIPLE)
    inner = _groups(uuids, levels, SINGLE)
    ways = {}
    for uuid in uuids:
        parts = [f"nvml-host{bridges[uuid]}"]
        together = [other for other in uuids if outer[other] == outer[uuid]]
        if len(together) > 1:
            parts.append(f"nvml-switch{outer[uuid]}")
            if len({inner[other] for other in together}) > 1:
                parts.append(f"nvml-port{inner[uuid]}")
        ways[uuid] = "/".join(parts)
    return ways


def sockets_by_ancestors(uuids: Sequence[str], levels: Levels) -> dict[str, str]:
    """Return ``socket`` attributes for GPUs of which nobody knows the NUMA node."""
    return {uuid: f"nvml-node{group}" for uuid, group in _groups(uuids, levels, NODE).items()}


def _groups(uuids: Sequence[str], levels: Levels, most: int) -> dict[str, int]:
    """Number the groups of GPUs whose common ancestor is at most so far away."""
    group = {uuid: number for number, uuid in enumerate(uuids)}
    is_near: Callable[[str, str], bool] = lambda a, b: levels.get((a, b), levels.get((b, a), most + 1)) <= most  # noqa: E731
    for one in uuids:
        for other in uuids:
            if group[one] != group[other] and is_near(one, other):
                kept, gone = sorted((group[one], group[other]))
                group = {uuid: kept if number == gone else number for uuid, number in group.items()}
    return group

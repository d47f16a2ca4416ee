"""How the devices of one slot are linked: what a plug-in says in a device's attributes, and what a link is worth.

A device may say in its ``attributes``:

- ``pcie``: the way from the host bridge down to the device, as names of the host bridge and of the switches, joined by
  ``/`` (``pci0000:00/sw0``); bridges that lead to one device alone are left out.
- ``nvlink``: the ids of the devices it has NVLinks to, with the number of lanes (``gpu1=2,gpu4=1``). One side suffices.
- ``socket``: the CPU socket, where it is not the NUMA node (several NUMA nodes in one socket).

The worth of a pair is what NVIDIA's device plug-in counts: the PCIe way, plus 100 for each NVLink lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PCIE, NVLINK, SOCKET = "pcie", "nvlink", "socket"
"""The names of the attributes."""

LANE_SCORE = 100
SWITCH_SCORE = 50
SWITCHES_SCORE = 40
"""Over several switches, but not over the host bridge."""
HOST_BRIDGE_SCORE = 30
SOCKET_SCORE = 20
ACROSS_SCORE = 10

_NAMES = {
    SWITCH_SCORE: "PIX",
    SWITCHES_SCORE: "PXB",
    HOST_BRIDGE_SCORE: "PHB",
    SOCKET_SCORE: "NODE",
    ACROSS_SCORE: "SYS",
}

LinkMatrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one device says of its links."""

    pcie: str = ""
    nvlink: str = ""
    socket: str = ""

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Wiring | None:
        """Return what attributes say of links; nothing where they do not."""
        pcie, nvlink, socket = (attributes.get(name, "") for name in (PCIE, NVLINK, SOCKET))
        return cls(pcie, nvlink, socket) if pcie or nvlink or socket else None


def parse_nvlink(text: str) -> dict[str, int]:
    """Return the lanes by peer of an ``nvlink`` attribute; what cannot be read is no link."""
    lanes: dict[str, int] = {}
    for part in text.split(","):
        peer, _, count = part.strip().rpartition("=")
        if peer and count.isdecimal():
            lanes[peer] = lanes.get(peer, 0) + int(count)
    return lanes


def format_nvlink(lanes: Mapping[str, int]) -> str:
    """Return an ``nvlink`` attribute."""
    return ",".join(f"{peer}={count}" for peer, count in sorted(lanes.items()))


def link_scores(ids: Sequence[str], wirings: Sequence[Wiring | None], numa_nodes: Sequence[int | None]) -> LinkMatrix:
    """Return what the link of every pair is worth, zero on the diagonal.

    Args:
        ids: The devices of one slot.
        wirings: What each says of its links, if anything.
        numa_nodes: The NUMA node of each, where known; it stands for the socket of a device that does not say it.

    Returns:
        A row per device; nothing when no device says anything.
    """
    if not any(wirings):
        return ()
    told = [wiring or Wiring() for wiring in wirings]
    lanes = [parse_nvlink(one.nvlink) for one in told]
    ways = [_parts(one.pcie) for one in told]
    sockets = [one.socket or numa for one, numa in zip(told, numa_nodes, strict=True)]
    rows = []
    for i, device in enumerate(ids):
        row = []
        for j, peer in enumerate(ids):
            both = max(lanes[i].get(peer, 0), lanes[j].get(device, 0))
            same_socket = sockets[i] is not None and sockets[i] == sockets[j]
            way = _way_score(ways[i], ways[j], same_socket=same_socket)
            row.append(0 if i == j else way + both * LANE_SCORE)
        rows.append(tuple(row))
    return tuple(rows)


def link_name(score: int) -> str:
    """Return what a pair's worth is called by ``nvidia-smi topo -m``: ``NV2``, ``PIX``, ``PXB``, ``PHB``, ``NODE``."""
    lanes = score // LANE_SCORE
    return f"NV{lanes}" if lanes else _NAMES.get(score, "")


def way_score(one: str, other: str, *, same_socket: bool) -> int:
    """Return what the PCIe way between two devices is worth, by their ``pcie`` attributes."""
    return _way_score(_parts(one), _parts(other), same_socket=same_socket)


def _parts(way: str) -> tuple[str, ...]:
    return tuple(part for part in way.split("/") if part)


def _way_score(one: Sequence[str], other: Sequence[str], *, same_socket: bool) -> int:
    shared = 0
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        shared += 1
    if shared > 1:
        return SWITCH_SCORE if len(one) == len(other) == shared else SWITCHES_SCORE
    if shared:
        return HOST_BRIDGE_SCORE
    return SOCKET_SCORE if same_socket else ACROSS_SCORE

"""What the client returns of one node: how it is built, what it gives out, and who holds what."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from backendai_ray.client._models import NodeInfo, Record, Text
from backendai_ray.client._usage import NodeUsage


class NumaNodeInfo(Record):
    """Cores and the memory next to them."""

    id: int
    socket: Text = ""
    cpus: tuple[int, ...] = ()
    memory_bytes: int = 0
    distances: tuple[int, ...] = ()


class NicInfo(Record):
    """A network card."""

    name: str
    kind: Text = "ethernet"
    """``ethernet``, ``infiniband`` or ``roce``."""
    interface: Text = ""
    numa_node: int | None = None
    pcie: Text = ""
    speed_mbps: int = 0
    is_up: bool = True


class DeviceInfo(Record):
    """A device that a node gives out."""

    slot: str
    id: str
    label: Text = ""
    """Short, for people; the name in the table of links."""
    capacity: int = 0
    """In the slot's units: 1000 for a core or an accelerator, bytes for memory."""
    numa_node: int | None = None
    model: Text = ""
    attributes: Mapping[str, str] = Field(default_factory=dict)


class HoldingInfo(Record):
    """What one container holds on a node."""

    kernel_id: str
    session_id: Text = ""
    session_name: Text = ""
    access_key: Text = ""
    hostname: Text = ""
    status: Text = ""
    devices: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)
    """Units by slot and device."""


class LinksInfo(Record):
    """How accelerators and network cards are linked, as ``nvidia-smi topo -m`` shows it."""

    names: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class NodeDetail(NodeInfo):
    """All that is known of a node."""

    labels: Mapping[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Why some device is not offered as it could be."""
    images: tuple[str, ...] = ()
    numa_nodes: tuple[NumaNodeInfo, ...] = ()
    nics: tuple[NicInfo, ...] = ()
    devices: tuple[DeviceInfo, ...] = ()
    links: LinksInfo = LinksInfo()
    holdings: tuple[HoldingInfo, ...] = ()
    usage: NodeUsage | None = None
    """As last measured; ``None`` while its agent does not answer."""

"""How a node is built beside the devices it gives out: NUMA nodes and network cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .devices import Device
from .ids import DeviceId
from .links import NVLINK, PCIE, Wiring, link_name, link_scores, way_score
from .topology import natural_key


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """Cores and the memory next to them."""

    id: int
    socket: str = ""
    """The CPU socket, as the machine numbers it; empty where it does not say."""
    cpus: tuple[int, ...] = ()
    memory_bytes: int = 0
    distances: tuple[int, ...] = ()
    """To each NUMA node, itself included; 10 is as near as can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One network card."""

    name: str
    """Of the RDMA device where it is one (``mlx5_0``), else of the interface (``eth0``)."""
    kind: str = "ethernet"
    """``ethernet``, ``infiniband``, or ``roce`` (RDMA over Ethernet)."""
    interface: str = ""
    """The network interface, where it has one."""
    numa_node: int | None = None
    pcie: str = ""
    """The way from the host bridge, as :mod:`.links` writes it for devices."""
    speed_mbps: int = 0
    """0 where it is not known."""
    is_up: bool = True

    @property
    def is_rdma(self) -> bool:
        """Return whether programs can use it by RDMA."""
        return self.kind != "ethernet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a node is, as far as the system tells."""

    numa_nodes: tuple[NumaNode, ...] = ()
    nics: tuple[Nic, ...] = ()


def local_memory_nodes(
    cores: Sequence[int], cpu_units: int, memory_bytes: int, numa_nodes: Sequence[NumaNode]
) -> tuple[int, ...]:
    """Return the NUMA nodes whose memory alone a kernel may use; empty where it may use all.

    It is held to the memory next to its cores where that is not more than its cores' share of it: so those who are
    held to one node never want more than the node has, as long as its cores are not given out more than once.

    Args:
        cores: Logical CPUs the kernel may run on.
        cpu_units: Thousandths of a core it may use together; 0: as much as its cores have.
        memory_bytes: Its limit; 0: none, and then it is held to nothing.
        numa_nodes: All there are.
    """
    near = {node: sum(cpu in cores for cpu in node.cpus) for node in numa_nodes}
    near = {node: count for node, count in near.items() if count}
    if not cores or not memory_bytes or sum(near.values()) < len(cores) or len(near) == len(numa_nodes):
        return ()
    units_per_core = (cpu_units or 1000 * len(cores)) / len(cores)
    share = sum(node.memory_bytes * count * units_per_core / (1000 * len(node.cpus)) for node, count in near.items())
    return tuple(sorted(node.id for node in near)) if memory_bytes <= share else ()


def near_nics(devices: Iterable[Device], nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """Return the network cards nearest to some devices: for each device those with the best link to it.

    Cards that are down do not count, and where any card has RDMA the others do not. Devices that say nothing of their
    links have no near cards.
    """
    up = [nic for nic in nics if nic.is_up]
    candidates = [nic for nic in up if nic.is_rdma] or up
    near: set[Nic] = set()
    for device in devices:
        if device.attributes.get(PCIE) or device.attributes.get(NVLINK):
            scores = {nic: _score(device, nic) for nic in candidates}
            near.update(nic for nic, score in scores.items() if score == max(scores.values()))
    return tuple(sorted(near, key=lambda nic: natural_key(nic.name)))


def near_nic_environ(near: Sequence[Nic]) -> Mapping[str, str]:
    """Return the variables that tell a program of the near cards.

    ``BACKENDAI_NEAR_NICS`` names them; ``NCCL_IB_HCA`` makes NCCL use the RDMA ones (the ``=`` means: exactly these).
    """
    if not near:
        return {}
    rdma = ",".join(nic.name for nic in near if nic.is_rdma)
    told = {"BACKENDAI_NEAR_NICS": ",".join(nic.name for nic in near)}
    return {**told, "NCCL_IB_HCA": f"={rdma}"} if rdma else told


@dataclass(frozen=True, slots=True)
class LinkTable:
    """How accelerators and network cards are linked, as ``nvidia-smi topo -m`` shows it."""

    names: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """A row per name, in the same order: ``NV2``, ``PIX``, …; ``X`` on the diagonal."""


def link_table(devices: Sequence[Device], nics: Sequence[Nic]) -> LinkTable:
    """Return how everything is linked that says so; empty when no device does."""
    told = [device for device in devices if Wiring.of(device.attributes)]
    if not told:
        return LinkTable()
    ends = [
        *((device.id, Wiring.of(device.attributes), device.numa_node) for device in told),
        *((DeviceId(nic.name), Wiring(pcie=nic.pcie), nic.numa_node) for nic in nics),
    ]
    scores = link_scores(*(tuple(column) for column in zip(*ends, strict=True)))
    names = tuple(device_label(device) for device in told) + tuple(nic.name for nic in nics)
    rows = tuple(
        tuple("X" if i == j else link_name(score) for j, score in enumerate(row)) for i, row in enumerate(scores)
    )
    return LinkTable(names, rows)


def device_label(device: Device) -> str:
    """Return a short name for people: ``GPU0`` for a whole GPU with a number, else the id."""
    number = device.attributes.get("index", "")
    return f"GPU{number}" if number and "parent" not in device.attributes else device.id


def _score(device: Device, nic: Nic) -> int:
    is_same_node = device.numa_node is not None and device.numa_node == nic.numa_node
    return way_score(device.attributes.get(PCIE, ""), nic.pcie, same_socket=is_same_node)

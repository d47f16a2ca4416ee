"""How this machine is built, read from sysfs: cores, NUMA nodes, PCIe tree, network cards.

Everything is read below a root path, so that any machine can be read from a copy of its tree. Nothing here raises for
what a machine does not have or does not say: virtual machines and containers leave out a lot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backendai_ray.core.machine import Machine, Nic, NumaNode

SYSFS = Path("/sys")

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_INFINIBAND_LINK = "32"
"""The hardware type of IP over InfiniBand, as ``/sys/class/net/*/type`` writes it."""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the numbers in a list such as ``0-3,8``; what cannot be read is left out."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not dash):
            found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class CpuPlace:
    """Where one logical CPU is."""

    siblings: tuple[int, ...] = ()
    """The logical CPUs of its physical core, itself included."""
    numa_node: int | None = None
    socket: str = ""


@dataclass(frozen=True, slots=True)
class PciPlace:
    """Where one PCI device is."""

    address: str
    numa_node: int | None = None
    way: str = ""
    """The host bridge and the switches down to the device, joined by ``/``; empty where the machine does not say."""


def normal_address(address: str) -> str:
    """Return a PCI address as sysfs writes it: NVML has eight digits in the domain, and capitals."""
    domain, _, rest = address.strip().lower().partition(":")
    return f"{domain[-4:].rjust(4, '0') if int(domain or '0', 16) <= 0xFFFF else domain}:{rest}"


class Sysfs:
    """Reads the tree below one root."""

    def __init__(self, root: Path = SYSFS) -> None:
        self._root = root

    def machine(self) -> Machine:
        """Return NUMA nodes and network cards."""
        return Machine(numa_nodes=self.numa_nodes(), nics=self.nics())

    # ── cores and memory ──────────────────────────────────────────────────────────────────────────────────────────

    def cpu(self, number: int) -> CpuPlace:
        """Return where a logical CPU is."""
        folder = self._root / f"devices/system/cpu/cpu{number}"
        nodes = sorted(_numbers_of(folder, "node"))
        return CpuPlace(
            siblings=parse_cpu_list(_read(folder / "topology/thread_siblings_list")),
            numa_node=nodes[0] if nodes else None,
            socket=_socket(_read(folder / "topology/physical_package_id")),
        )

    def numa_nodes(self) -> tuple[NumaNode, ...]:
        """Return the NUMA nodes; none where the machine does not tell of any."""
        folder = self._root / "devices/system/node"
        found = []
        for number in sorted(_numbers_of(folder, "node")):
            here = folder / f"node{number}"
            cpus = parse_cpu_list(_read(here / "cpulist"))
            found.append(
                NumaNode(
                    id=number,
                    socket=self.cpu(cpus[0]).socket if cpus else "",
                    cpus=cpus,
                    memory_bytes=_memory_total(_read(here / "meminfo")),
                    distances=tuple(int(part) for part in _read(here / "distance").split() if part.isdecimal()),
                )
            )
        return tuple(found)

    # ── PCIe ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pci(self, address: str) -> PciPlace:
        """Return where a PCI device is."""
        name = normal_address(address)
        path = self._resolved(self._root / "bus/pci/devices" / name)
        if path is None:
            return PciPlace(name)
        node = _read(path / "numa_node")
        return PciPlace(name, int(node) if node.isdecimal() else None, self._way(path))

    def _way(self, device: Path) -> str:
        """Return the way down to a device: its host bridge, and of the bridges below those that lead to several."""
        above = list(device.relative_to(self._devices()).parents)[-2::-1]  # without the root itself
        bridges = [part for part in above if _ADDRESS.fullmatch(part.name)]
        hosts = [part.name for part in above if part.name.startswith("pci")]
        if not hosts:
            return ""
        switches = [bridge.name for bridge in bridges if len(self._slots_below(self._devices() / bridge)) > 1]
        return "/".join([*hosts[:1], *switches])

    def _slots_below(self, bridge: Path) -> set[str]:
        """Return the slots (addresses without the function) right below a bridge."""
        return {child.name.rpartition(".")[0] for child in _children(bridge) if _ADDRESS.fullmatch(child.name)}

    # ── network cards ─────────────────────────────────────────────────────────────────────────────────────────────

    def nics(self) -> tuple[Nic, ...]:
        """Return the network cards that are hardware (or that a virtual machine takes for it), by name."""
        cards = {**self._interfaces(), **self._rdma_devices()}  # an RDMA device tells more of the same card
        return tuple(sorted(cards.values(), key=lambda nic: nic.name))

    def _interfaces(self) -> dict[Path, Nic]:
        found = {}
        for entry in _children(self._root / "class/net"):
            device = self._pci_device(entry / "device")
            if device is None or (device / "physfn").exists():
                continue  # a bridge, a tunnel or the like, or one of many virtual functions of a card
            kind = "infiniband" if _read(entry / "type") == _INFINIBAND_LINK else "ethernet"
            speed = _read(entry / "speed")
            found[device] = Nic(
                name=entry.name,
                kind=kind,
                interface=entry.name,
                speed_mbps=int(speed) if speed.isdecimal() else 0,
                is_up=_read(entry / "operstate") in ("up", "unknown"),
                numa_node=(place := self.pci(device.name)).numa_node,
                pcie=place.way,
            )
        return found

    def _rdma_devices(self) -> dict[Path, Nic]:
        found = {}
        for entry in _children(self._root / "class/infiniband"):
            device = self._pci_device(entry / "device")
            if device is None or (device / "physfn").exists():
                continue
            port = entry / "ports/1"
            interfaces = sorted(child.name for child in _children(device / "net"))
            found[device] = Nic(
                name=entry.name,
                kind="roce" if _read(port / "link_layer") == "Ethernet" else "infiniband",
                interface=interfaces[0] if interfaces else "",
                speed_mbps=_rate_mbps(_read(port / "rate")),
                is_up="ACTIVE" in _read(port / "state"),
                numa_node=(place := self.pci(device.name)).numa_node,
                pcie=place.way,
            )
        return found

    def _pci_device(self, link: Path) -> Path | None:
        """Return the PCI device that something is, or is a part of (a virtio device is)."""
        path = self._resolved(link)
        while path is not None and path != self._devices() and not _ADDRESS.fullmatch(path.name):
            path = path.parent if path.is_relative_to(self._devices()) else None
        return None if path == self._devices() else path

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _devices(self) -> Path:
        return self._root.resolve() / "devices"

    def _resolved(self, link: Path) -> Path | None:
        try:
            path = link.resolve(strict=True)
        except OSError:
            return None
        return path if path.is_relative_to(self._devices()) else None


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def _numbers_of(folder: Path, prefix: str) -> set[int]:
    names = (child.name.removeprefix(prefix) for child in _children(folder) if child.name.startswith(prefix))
    return {int(name) for name in names if name.isdecimal()}


def _socket(text: str) -> str:
    return text if text.isdecimal() else ""


def _memory_total(meminfo: str) -> int:
    match = re.search(r"MemTotal:\s+(\d+) kB", meminfo)
    return int(match[1]) * 1024 if match else 0


def _rate_mbps(text: str) -> int:
    """Return the rate of a port, which reads ``200 Gb/sec (4X HDR)``."""
    match = re.match(r"([\d.]+) Gb/sec", text)
    return round(float(match[1]) * 1000) if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""

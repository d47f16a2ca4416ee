"""Small copies of machines' sysfs trees."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

UPSTREAM = "0000:{bus}:00.0"


class Tree:
    """Writes a sysfs tree; addresses are given from the host bridge down."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def link(self, path: str, target: str) -> None:
        """Make ``path`` a relative symlink to ``target``, both below the root, as sysfs does."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.root / target).mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.root / target, place.parent))

    def node(self, number: int, cpus: str, *, socket: int, memory_kb: int = 1024, distance: str = "10") -> None:
        self.write(f"devices/system/node/node{number}/cpulist", cpus)
        self.write(f"devices/system/node/node{number}/distance", distance)
        self.write(f"devices/system/node/node{number}/meminfo", f"Node {number} MemTotal:  {memory_kb} kB")
        first, _, last = cpus.split(",")[0].partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            self.cpu(cpu, node=number, socket=socket)

    def cpu(self, number: int, *, node: int, socket: int, siblings: str = "") -> None:
        self.write(f"devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings or str(number))
        self.write(f"devices/system/cpu/cpu{number}/topology/physical_package_id", str(socket))
        self.link(f"devices/system/cpu/cpu{number}/node{node}", f"devices/system/node/node{node}")

    def pci(self, *way: str, numa_node: int = -1) -> str:
        """Add a device with all above it; returns its folder."""
        folder = "devices/" + "/".join(way)
        self.write(f"{folder}/numa_node", str(numa_node))
        for depth in range(2, len(way) + 1):
            name = way[depth - 1]
            if not (self.root / f"bus/pci/devices/{name}").is_symlink():
                self.link(f"bus/pci/devices/{name}", "devices/" + "/".join(way[:depth]))
        return folder

    def interface(self, name: str, device: str, files: Mapping[str, str]) -> None:
        for file, text in {"type": "1", "operstate": "up", **files}.items():
            self.write(f"{device}/net/{name}/{file}", text)
        self.link(f"class/net/{name}", f"{device}/net/{name}")
        self.link(f"{device}/net/{name}/device", device)

    def rdma(self, name: str, device: str, files: Mapping[str, str]) -> None:
        port = {"link_layer": "InfiniBand", "state": "4: ACTIVE", "rate": "200 Gb/sec (4X HDR)", **files}
        for file, text in port.items():
            self.write(f"{device}/infiniband/{name}/ports/1/{file}", text)
        self.link(f"class/infiniband/{name}", f"{device}/infiniband/{name}")
        self.link(f"{device}/infiniband/{name}/device", device)


def two_socket_box(root: Path) -> Tree:
    """Two sockets, a PCIe switch each with two GPUs and a card below, one card more, hyper-threads."""
    tree = Tree(root)
    tree.node(0, "0-1", socket=0, distance="10 21")
    tree.node(1, "2-3", socket=1, distance="21 10")
    for number in (0, 1):
        host, bus = f"pci0000:{number}0", f"{number}1"
        switch = (host, f"0000:{number}0:01.0", f"0000:{bus}:00.0")
        for port, device in ((0, f"0000:{number}3:00.0"), (1, f"0000:{number}4:00.0")):
            tree.pci(*switch, f"0000:{number}2:0{port}.0", device, numa_node=number)
            tree.pci(*switch, f"0000:{number}2:0{port}.0", device.replace(".0", ".1"), numa_node=number)  # its sound
        card = tree.pci(*switch, f"0000:{number}2:02.0", f"0000:{number}5:00.0", numa_node=number)
        tree.interface(f"ib{number}", card, {"type": "32", "speed": "-1"})
        tree.rdma(f"mlx5_{number}", card, {})
    plain = tree.pci("pci0000:00", "0000:00:02.0", "0000:06:00.0", numa_node=0)
    tree.interface("eth0", plain, {"speed": "25000"})
    return tree

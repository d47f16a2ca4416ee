"""What is read from sysfs: small trees of machines that are not this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.agent.devices.sysfs import CpuPlace, PciPlace, Sysfs, normal_address, parse_cpu_list
from backendai_ray.core.devices import Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.machine import Machine, Nic, NumaNode, near_nic_environ, near_nics
from backendai_ray.core.slots import SlotName
from tests.unit.agent.trees import Tree, two_socket_box

GPU = SlotName("cuda.device")


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("", ()), ("0,64", (0, 64)), ("a-b,1-,2", (2,)), ("3-1", ())],
)
def test_lists_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("said", "normal"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("0001A000:01:00.0", "0001a000:01:00.0"),
        ("10:01:00.0", "0010:01:00.0"),
    ],
)
def test_addresses_are_written_as_sysfs_does(said: str, normal: str) -> None:
    assert normal_address(said) == normal


def test_numa_nodes_and_sockets(tmp_path: Path) -> None:
    two_socket_box(tmp_path)
    nodes = Sysfs(tmp_path).numa_nodes()
    assert nodes == (
        NumaNode(id=0, socket="0", cpus=(0, 1), memory_bytes=2**20, distances=(10, 21)),
        NumaNode(id=1, socket="1", cpus=(2, 3), memory_bytes=2**20, distances=(21, 10)),
    )


def test_hyper_threads_are_siblings_also_when_they_are_said_as_a_range(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.cpu(4, node=0, socket=1, siblings="4-5")
    assert Sysfs(tmp_path).cpu(4) == CpuPlace(siblings=(4, 5), numa_node=0, socket="1")


def test_the_way_to_a_device_names_what_leads_to_several(tmp_path: Path) -> None:
    two_socket_box(tmp_path)
    sysfs = Sysfs(tmp_path)
    assert sysfs.pci("00000000:03:00.0") == PciPlace("0000:03:00.0", 0, "pci0000:00/0000:01:00.0")
    assert sysfs.pci("0000:14:00.0") == PciPlace("0000:14:00.0", 1, "pci0000:10/0000:11:00.0")
    assert sysfs.pci("0000:06:00.0").way == "pci0000:00", "its port leads to it alone"


def test_switches_below_switches(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for slot in ("0", "1"):
        for leaf in ("0", "1"):
            tree.pci(
                "pci0000:00", "0000:00:01.0", "0000:01:00.0", f"0000:02:0{slot}.0", f"0000:1{slot}:00.0",
                f"0000:2{slot}:0{leaf}.0", f"0000:3{slot}:0{leaf}.0",
            )  # fmt: skip
    assert Sysfs(tmp_path).pci("0000:30:01.0").way == "pci0000:00/0000:01:00.0/0000:10:00.0"


def test_cards_are_found_once_with_what_is_known_of_them(tmp_path: Path) -> None:
    tree = two_socket_box(tmp_path)
    (tmp_path / "class/net/docker0").mkdir()  # a bridge has no device
    function = tree.pci("pci0000:00", "0000:00:02.0", "0000:06:00.2", numa_node=0)
    tree.interface("eth0v0", function, {})
    tree.link(f"{function}/physfn", "devices/pci0000:00/0000:00:02.0/0000:06:00.0")
    eth0, mlx5_0, mlx5_1 = Sysfs(tmp_path).nics()
    assert eth0 == Nic(name="eth0", interface="eth0", numa_node=0, pcie="pci0000:00", speed_mbps=25000)
    assert mlx5_0 == Nic(
        name="mlx5_0",
        kind="infiniband",
        interface="ib0",
        numa_node=0,
        pcie="pci0000:00/0000:01:00.0",
        speed_mbps=200_000,
    )
    assert (mlx5_1.numa_node, mlx5_1.pcie) == (1, "pci0000:10/0000:11:00.0")


def test_a_virtual_machines_card_hangs_below_a_pci_device(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    parent = tree.pci("pci0000:00", "0000:00:03.0")
    tree.interface("eth0", f"{parent}/virtio0", {"speed": "-1", "operstate": "down"})
    assert Sysfs(tmp_path).nics() == (Nic(name="eth0", interface="eth0", pcie="pci0000:00", is_up=False),)


def test_roce_is_rdma_over_ethernet(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    card = tree.pci("pci0000:00", "0000:00:03.0")
    tree.rdma("mlx5_9", card, {"link_layer": "Ethernet", "state": "1: DOWN", "rate": "?"})
    assert Sysfs(tmp_path).nics() == (Nic(name="mlx5_9", kind="roce", pcie="pci0000:00", is_up=False),)


def test_a_machine_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "nothing")
    assert sysfs.machine() == Machine()
    assert sysfs.cpu(0) == CpuPlace()
    assert sysfs.pci("0000:01:00.0") == PciPlace("0000:01:00.0")
    assert Sysfs().machine().numa_nodes is not None, "this machine can be read"


def test_a_link_out_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0000:01:00.0").symlink_to(tmp_path)
    assert Sysfs(tmp_path / "sys").pci("0000:01:00.0") == PciPlace("0000:01:00.0")


# ── the nearest card ──────────────────────────────────────────────────────────────────────────────────────────────


def gpu(name: str, node: int, way: str) -> Device:
    return Device(GPU, DeviceId(name), 1000, node, attributes={"pcie": way})


NEAR = Nic(name="mlx5_2", kind="infiniband", numa_node=0, pcie="a/s0")
FAR = Nic(name="mlx5_10", kind="infiniband", numa_node=1, pcie="b/s1")
PLAIN = Nic(name="eth0", numa_node=0, pcie="a/s0")


def test_each_device_gets_its_nearest_cards() -> None:
    one, other = gpu("0", 0, "a/s0"), gpu("1", 1, "b/s1")
    assert near_nics([one], [FAR, PLAIN, NEAR]) == (NEAR,), "RDMA before a plain card on the same switch"
    assert near_nics([other, one], [FAR, NEAR]) == (NEAR, FAR)
    assert near_nics([one], [PLAIN]) == (PLAIN,)
    twin = Nic(name="mlx5_3", kind="infiniband", numa_node=0, pcie="a/s0")
    assert near_nics([one], [NEAR, twin]) == (NEAR, twin), "equals are both near"


def test_cards_that_are_down_and_devices_without_links_have_no_say() -> None:
    down = Nic(name="mlx5_0", kind="infiniband", pcie="a/s0", is_up=False)
    assert near_nics([gpu("0", 0, "a/s0")], [down]) == ()
    assert near_nics([gpu("0", 0, "a/s0")], [down, PLAIN]) == (PLAIN,)
    assert near_nics([Device(GPU, DeviceId("0"), 1000, 0)], [NEAR]) == ()


def test_a_program_is_told() -> None:
    assert near_nic_environ(()) == {}
    assert near_nic_environ((NEAR, FAR)) == {"BACKENDAI_NEAR_NICS": "mlx5_2,mlx5_10", "NCCL_IB_HCA": "=mlx5_2,mlx5_10"}
    assert near_nic_environ((PLAIN,)) == {"BACKENDAI_NEAR_NICS": "eth0"}

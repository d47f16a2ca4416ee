"""What a link is worth."""

from __future__ import annotations

import pytest

from backendai_ray.core.devices import Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.links import Wiring, format_nvlink, link_scores, parse_nvlink
from backendai_ray.core.reports import DeviceTable
from backendai_ray.core.slots import SlotName
from backendai_ray.core.topology import Layout

GPU, SHARES = SlotName("cuda.device"), SlotName("cuda.shares")


@pytest.mark.parametrize(
    ("one", "other", "numa_nodes", "score"),
    [
        (Wiring("pci0/sw0"), Wiring("pci0/sw0"), (0, 0), 50),
        (Wiring("pci0/sw0/sw1"), Wiring("pci0/sw0/sw2"), (0, 0), 40),
        (Wiring("pci0/sw0"), Wiring("pci0/sw0/sw2"), (0, 0), 40),
        (Wiring("pci0/sw0"), Wiring("pci0/sw1"), (0, 0), 30),
        (Wiring("pci0"), Wiring("pci0"), (0, 0), 30),
        (Wiring("pci0/sw0"), Wiring("pci1/sw0"), (0, 0), 20),
        (Wiring("pci0/sw0"), Wiring("pci1/sw0"), (0, 1), 10),
        (Wiring("pci0", socket="a"), Wiring("pci1", socket="a"), (0, 1), 20),
        (Wiring("pci0"), Wiring("pci1"), (None, None), 10),
        (Wiring("pci0"), None, (0, None), 10),
        (Wiring("pci0/sw0", "b=2"), Wiring("pci0/sw0", "a=2"), (0, 0), 250),
        (Wiring(nvlink="b=12"), None, (0, 1), 1210),
        (None, Wiring(nvlink="a=1"), (None, None), 110),
    ],
)
def test_worth_of_a_pair(
    one: Wiring | None, other: Wiring | None, numa_nodes: tuple[int | None, int | None], score: int
) -> None:
    assert link_scores(("a", "b"), (one, other), numa_nodes) == ((0, score), (score, 0))


def test_nobody_says_anything() -> None:
    assert link_scores(("a", "b"), (None, None), (0, 0)) == ()


def test_nvlink_attribute() -> None:
    lanes = {"0000:3b:00.0": 2, "GPU-1": 1}
    assert parse_nvlink(format_nvlink(lanes)) == lanes
    assert parse_nvlink("") == parse_nvlink("gpu1, =2, gpu3=two, gpu4=-1") == {}


def test_links_reach_the_layout_and_survive_the_report() -> None:
    devices = (
        Device(GPU, DeviceId("g1"), 1000, 0, attributes={"pcie": "pci0/sw0"}),
        Device(GPU, DeviceId("g0"), 1000, 0, attributes={"pcie": "pci0/sw0", "nvlink": "g1=1"}),
        Device(SHARES, DeviceId("s0"), 1000, 0, attributes={"pcie": "pci0/sw0"}),
    )
    layout = Layout.of(DeviceTable.of(devices).devices())
    assert layout.slots[GPU].links == ((0, 150), (150, 0))
    assert layout.slots[SHARES].links == ()
    assert layout == Layout.of(devices)
    assert layout != Layout.of([Device(d.slot, d.id, d.capacity, d.numa_node) for d in devices])

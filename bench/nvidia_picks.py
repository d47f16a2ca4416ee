"""Boxes and picks that NVIDIA's allocator publishes as expected of its best-effort policy (go-gpuallocator's tests).

The boxes are given as links alone, as there; ``numa`` adds the NUMA nodes that their links imply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from backendai_ray.core.devices import Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.links import NVLINK, PCIE, SOCKET, format_nvlink
from backendai_ray.core.slots import UNITS_PER_COUNT, SlotName

GPU = SlotName("cuda.device")


@dataclass(frozen=True, slots=True)
class Box:
    """GPUs, numbered from 0."""

    name: str
    switches: tuple[tuple[int, ...], ...]
    """The GPUs of each PCIe switch."""
    host_bridges: tuple[int, ...]
    """The host bridge of each switch; its tens are the socket."""
    lanes: Mapping[tuple[int, int], int]
    """NVLink lanes of a pair."""

    def devices(self, *, numa: bool = False) -> tuple[Device, ...]:
        """Return the GPUs, with NUMA nodes if asked for."""
        found = []
        for switch, members in enumerate(self.switches):
            bridge = self.host_bridges[switch]
            for gpu in members:
                peers = {f"{a + b - gpu}": count for (a, b), count in self.lanes.items() if gpu in (a, b)}
                said = {PCIE: f"pci{bridge}/sw{switch}", NVLINK: format_nvlink(peers), SOCKET: f"socket{bridge // 10}"}
                place = bridge // 10 if numa else None
                found.append(Device(GPU, DeviceId(str(gpu)), UNITS_PER_COUNT, place, attributes=said))
        return tuple(sorted(found, key=lambda device: device.id))


DGX1_VOLTA = Box(
    "DGX-1 (Volta)",
    switches=((0, 1), (2, 3), (4, 5), (6, 7)),
    host_bridges=(0, 0, 10, 10),
    lanes={
        **dict.fromkeys([(0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)], 2),
        **dict.fromkeys([(0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7)], 1),
    },
)
DGX1_PASCAL = Box(
    "DGX-1 (Pascal)",
    switches=((0, 2), (1, 3), (4, 6), (5, 7)),
    host_bridges=(0, 0, 10, 10),
    lanes=dict.fromkeys(
        # Each half is fully linked, and each GPU is linked with its counterpart in the other half.
        [*combinations(range(4), 2), *combinations(range(4, 8), 2), (0, 4), (1, 5), (2, 6), (3, 7)],
        1,
    ),
)
RTX8000 = Box(
    "4x RTX 8000",
    switches=((0,), (1,), (2,), (3,)),
    host_bridges=(0, 1, 10, 11),
    lanes={(0, 3): 2, (1, 2): 2},
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is free, how many are wanted, and what NVIDIA's policy takes."""

    box: Box
    free: tuple[int, ...]
    pick: tuple[int, ...]


def _one_after_the_other(box: Box, *picks: tuple[int, ...]) -> list[Case]:
    free = {gpu for members in box.switches for gpu in members}
    cases = []
    for pick in picks:
        cases.append(Case(box, tuple(sorted(free)), pick))
        free -= set(pick)
    return cases


_SINGLES = tuple((gpu,) for gpu in range(8))
_HALVES = ((0, 1, 2, 3), (4, 5, 6, 7))
_ALL = (0, 1, 2, 3, 4, 5, 6, 7)

DGX1_ROWS = (
    (DGX1_VOLTA, _SINGLES),
    (DGX1_VOLTA, ((0, 3), (1, 2), (4, 7), (5, 6))),
    (DGX1_VOLTA, _HALVES),
    (DGX1_VOLTA, (_ALL,)),
    (DGX1_PASCAL, _SINGLES),
    (DGX1_PASCAL, ((0, 2), (1, 3), (4, 6), (5, 7))),
    (DGX1_PASCAL, _HALVES),
    (DGX1_PASCAL, (_ALL,)),
)
"""Equal requests that fill an empty box, one after the other."""
DGX1_CASES = (
    Case(DGX1_VOLTA, (0, 2, 4, 5), (4, 5)),
    Case(DGX1_VOLTA, (0, 4, 5, 6), (5, 6)),
    Case(DGX1_VOLTA, (0, 1, 3), (0, 3)),
    Case(DGX1_VOLTA, (0, 1, 4), (0, 4)),
    *(case for box, picks in DGX1_ROWS for case in _one_after_the_other(box, *picks)),
)
OTHER_CASES = (
    *_one_after_the_other(RTX8000, (0,), (1,), (2,), (3,)),
    *_one_after_the_other(RTX8000, (0, 3), (1, 2)),
    *_one_after_the_other(RTX8000, (0, 1, 2, 3)),
)

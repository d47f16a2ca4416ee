"""CPU cores: one device per logical CPU that the agent may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.slots import CPU, UNITS_PER_COUNT, SlotName

from .base import DevicePlugin, Grant

_SYSFS = Path("/sys/devices/system")


class CpuPlugin(DevicePlugin):
    """Gives out cores whole or in thousandths; fractions are held by a quota of CPU time."""

    name = "cpu"

    @property
    def slots(self) -> Sequence[SlotName]:
        return (CPU,)

    def devices(self) -> Sequence[Device]:
        usable = sorted(os.sched_getaffinity(0))
        reserved = round(self.settings.reserved_cpu * UNITS_PER_COUNT)
        overcommit = self.settings.cpu_overcommit
        found = []
        # What is reserved comes off the first cores, where the system's own interrupts tend to be served.
        for core in usable:
            kept = min(reserved, UNITS_PER_COUNT)
            reserved -= kept
            capacity = int((UNITS_PER_COUNT - kept) * overcommit)
            if capacity:
                found.append(_describe(core, capacity))
        return found

    def grant(self, allocation: Allocation) -> Grant:
        parts = allocation.devices(CPU)
        cores = tuple(sorted(int(core) for core in parts))
        units = sum(parts.values())
        # Whole cores need no quota, and throttling costs latency: the set of cores is limit enough.
        is_fractional = units < UNITS_PER_COUNT * len(cores)
        threads = str(max(1, units // UNITS_PER_COUNT))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        return Grant(
            cores=cores,
            cpu_units=units if is_fractional else 0,
            environ=dict.fromkeys(names, threads) if parts else {},
        )


def _describe(core: int, capacity: int) -> Device:
    folder = _SYSFS / f"cpu/cpu{core}"
    siblings = _read(folder / "topology/thread_siblings_list")
    nodes = sorted(int(node.name.removeprefix("node")) for node in folder.glob("node[0-9]*"))
    return Device(
        slot=CPU,
        id=DeviceId(str(core)),
        capacity=capacity,
        numa_node=nodes[0] if nodes else None,
        attributes={"siblings": siblings} if siblings and siblings != str(core) else {},
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""CPU cores: one device per logical CPU that the agent may use."""

from __future__ import annotations

import os
from collections.abc import Sequence

from backendai_ray.config import AgentSettings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.slots import CPU, UNITS_PER_COUNT, SlotName

from .base import DevicePlugin, Grant
from .sysfs import Sysfs


class CpuPlugin(DevicePlugin):
    """Gives out cores whole or in thousandths; fractions are held by a quota of CPU time."""

    name = "cpu"
    settings: AgentSettings

    def __init__(self, settings: AgentSettings, sysfs: Sysfs | None = None) -> None:
        super().__init__(settings)
        self._sysfs = sysfs or Sysfs()

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
                found.append(self._describe(core, capacity))
        return found

    def _describe(self, core: int, capacity: int) -> Device:
        place = self._sysfs.cpu(core)
        has_siblings = bool(set(place.siblings) - {core})
        return Device(
            slot=CPU,
            id=DeviceId(str(core)),
            capacity=capacity,
            numa_node=place.numa_node,
            attributes={"siblings": ",".join(map(str, place.siblings))} if has_siblings else {},
        )

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
            defaults=dict.fromkeys(names, threads) if parts else {},
        )

"""Memory: one device for the whole node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backendai_ray.config import AgentSettings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.slots import MEM, SlotName, parse_amount

from .base import DevicePlugin, Grant

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class MemPlugin(DevicePlugin):
    """Gives out bytes of what the machine (or the container that the agent is in) has, less what is reserved.

    NUMA nodes are not told apart: the kernel places pages near the cores that touch them, and a hard split would
    refuse sessions that fit the machine.
    """

    name = "mem"
    settings: AgentSettings

    @property
    def slots(self) -> Sequence[SlotName]:
        return (MEM,)

    def devices(self) -> Sequence[Device]:
        usable = total_bytes() - parse_amount(MEM, self.settings.reserved_mem, field="agent.reserved_mem")
        capacity = max(0, int(usable * self.settings.mem_overcommit))
        return (Device(slot=MEM, id=DeviceId("root"), capacity=capacity),) if capacity else ()

    def grant(self, allocation: Allocation) -> Grant:
        return Grant(memory_bytes=sum(allocation.devices(MEM).values()))


def total_bytes() -> int:
    """Return the memory that this machine has, or the limit we are under when that is less."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            break
    else:  # pragma: no cover - every Linux says it
        raise RuntimeError("/proc/meminfo does not say MemTotal")
    for name in _LIMIT_FILES:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total

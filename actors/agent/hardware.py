"""What a node has to give out, and how it is built: all its device plug-ins, and what the system tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from actors.agent.devices.contained import ContainedPlugin, PluginTroubleError
from actors.agent.devices.sysfs import Sysfs
from backendai_ray.core.device_plugins import DevicePlugin, DeviceUsage, Grant
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.machine import Machine, local_memory_nodes, near_nic_environ, near_nics
from backendai_ray.core.slots import SlotName


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """What a look found."""

    devices: tuple[Device, ...] = ()
    machine: Machine = field(default_factory=Machine)
    notes: tuple[str, ...] = ()
    """Why something is not offered as it could be, a sentence each."""


class Hardware:
    """Asks and tells; every method but :meth:`close` blocks, and is called from worker threads."""

    def __init__(self, plugins: Sequence[DevicePlugin], sysfs: Sysfs | None = None) -> None:
        self.plugins = tuple(ContainedPlugin(plugin) for plugin in plugins)
        self.facts = HardwareFacts()
        """As of the last look."""
        self._sysfs = sysfs or Sysfs()

    def look(self) -> HardwareFacts:
        """Find out what there is now."""
        for plugin in self.plugins:
            plugin.look()
        machine = self._sysfs.machine()
        extra = tuple(nic for plugin in self.plugins for nic in plugin.nics)
        self.facts = HardwareFacts(
            devices=self._devices(),
            machine=replace(machine, nics=machine.nics + extra),
            notes=tuple(plugin.note for plugin in self.plugins if plugin.note),
        )
        return self.facts

    def _devices(self) -> tuple[Device, ...]:
        """Return what all plug-ins list; of two devices with one name, the first plug-in's."""
        found: dict[tuple[SlotName, DeviceId], Device] = {}
        for plugin in self.plugins:
            for device in plugin.devices:
                found.setdefault((device.slot, device.id), device)
        return tuple(found.values())

    def grant(self, allocation: Allocation) -> Grant:
        """Return all that a kernel gets.

        Raises:
            KernelStartFailed: a plug-in does not say how, or no plug-in has such a device (any more).
        """
        left = allocation.parts
        grants: list[Grant] = []
        withheld: dict[str, str] = {}
        for plugin in self.plugins:
            mine = tuple(part for part in left if plugin.knows(part[0], part[1]))
            left = tuple(part for part in left if part not in mine)
            if not mine:
                withheld.update(plugin.withheld)
                continue
            try:
                grants.append(plugin.grant(Allocation(mine)))
            except PluginTroubleError as trouble:
                message = f"the node's device plug-in {plugin.name} {trouble}"
                raise KernelStartFailed(message, retryable=True) from trouble
        if left:
            slot, device, _ = left[0]
            raise KernelStartFailed(f"the node does not have the {slot} device {device} now", retryable=True)
        grant = Grant.join([Grant(environ=withheld, defaults=self._near(allocation)), *grants])
        nodes = local_memory_nodes(grant.cores, grant.cpu_units, grant.memory_bytes, self.facts.machine.numa_nodes)
        return replace(grant, memory_nodes=nodes)

    def _near(self, allocation: Allocation) -> dict[str, str]:
        held = {(slot, device) for slot, device, _ in allocation.parts}
        devices = [device for device in self.facts.devices if (device.slot, device.id) in held]
        return dict(near_nic_environ(near_nics(devices, self.facts.machine.nics)))

    def usage(self) -> tuple[DeviceUsage, ...]:
        """Return how much of the devices is in use, as far as plug-ins know."""
        return tuple(usage for plugin in self.plugins for usage in plugin.usage())

    def close(self) -> None:
        """Let the plug-ins' threads end."""
        for plugin in self.plugins:
            plugin.close()

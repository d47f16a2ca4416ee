"""Accelerators that are described and not there: to try placement, policies and programs on any machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from backendai_ray.config import AgentSettings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.links import NVLINK, PCIE, SOCKET, format_nvlink
from backendai_ray.core.machine import Nic
from backendai_ray.core.slots import UNITS_PER_COUNT, SlotKind, SlotName, plain_amount, slot_kind
from backendai_ray.core.topology import natural_key

from .base import DevicePlugin, Grant
from .mock_description import MockAccelerators, MockDevice, MockNic, load_description

MEMORY = "memory"
"""The attribute with a device's memory in bytes."""


class MockPlugin(DevicePlugin):
    """Gives out what the description says; a kernel learns of its part by environment variables."""

    name = "mock"

    def __init__(self, settings: AgentSettings) -> None:
        """Read the description, once: what is there does not change while the agent runs.

        Raises:
            InvalidParameter: the description cannot be used.
        """
        super().__init__(settings)
        description = load_description(settings.devices.mock) if settings.devices.mock else None
        self._slots = description.slots() if description else ()
        found = [device for group in (description.accelerators if description else ()) for device in _devices(group)]
        self._nics = tuple(_nic(nic) for nic in (description.nics if description else ()))
        self._devices = tuple(sorted(found, key=lambda device: (device.slot, natural_key(device.id))))

    @property
    def slots(self) -> Sequence[SlotName]:
        return self._slots

    def devices(self) -> Sequence[Device]:
        return self._devices

    def nics(self) -> Sequence[Nic]:
        return self._nics

    def grant(self, allocation: Allocation) -> Grant:
        environ: dict[str, str] = {}
        advisory = []
        for slot in self._slots:
            parts = allocation.devices(slot)
            mine = [device for device in self._devices if device.slot == slot and device.id in parts]
            if not mine:
                continue
            prefix = "MOCK_" + re.sub(r"[^A-Z0-9]", "_", slot.upper())
            environ[prefix] = ",".join(device.id for device in mine)
            environ[f"{prefix}_AMOUNTS"] = ",".join(plain_amount(slot, parts[device.id]) for device in mine)
            sizes = [int(device.attributes.get(MEMORY, 0)) * parts[device.id] // UNITS_PER_COUNT for device in mine]
            environ[f"{prefix}_MEMORY"] = ",".join(map(str, sizes))
            if slot_kind(slot) is SlotKind.SHARES and any(units < UNITS_PER_COUNT for units in parts.values()):
                advisory.append(slot)
        return Grant(environ=environ, advisory=tuple(advisory))


def _devices(group: MockAccelerators) -> list[Device]:
    lanes = group.lanes()
    return [
        Device(
            slot=SlotName(group.slot),
            id=DeviceId(device.id),
            capacity=UNITS_PER_COUNT,
            numa_node=device.numa_node,
            model=device.model or group.model,
            attributes=_attributes(group, device, lanes.get(device.id, {})),
        )
        for device in group.devices
    ]


def _nic(nic: MockNic) -> Nic:
    return Nic(name=nic.id, kind=nic.kind, numa_node=nic.numa_node, pcie=nic.pcie, speed_mbps=nic.speed_mbps)


def _attributes(group: MockAccelerators, device: MockDevice, lanes: dict[str, int]) -> dict[str, str]:
    memory = group.memory_of(device)
    said = {
        PCIE: device.pcie,
        NVLINK: format_nvlink(lanes),
        SOCKET: device.socket,
        MEMORY: str(memory) if memory else "",
    }
    return {name: text for name, text in said.items() if text}

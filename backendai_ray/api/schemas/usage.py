"""Usage as the API shows it: what was measured last, ``null`` where nothing is known."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backendai_ray.api.schemas.sessions import iso
from backendai_ray.core.device_plugins import DeviceUsage
from backendai_ray.core.measurements import KernelDeviceUsage, KernelUsage, NodeUsage


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class KernelDeviceUsageView(_Answer):
    """A container's part of one device."""

    slot: str
    id: str
    units: int = Field(description="How much of it the container holds; 1000 is all of it.")
    utilization: float | None = Field(description="Of the whole device, 0 to 1; of a shared one, by all who share it.")
    memory_used: int | None = Field(description="By this container, in bytes.")
    memory_total: int | None = Field(description="Of the device.")

    @classmethod
    def of(cls, usage: KernelDeviceUsage) -> KernelDeviceUsageView:
        """Show a part."""
        return cls(
            slot=usage.slot,
            id=usage.id,
            units=usage.units,
            utilization=usage.utilization,
            memory_used=usage.memory_used,
            memory_total=usage.memory_total,
        )


class KernelUsageView(_Answer):
    """What one container uses."""

    kernel_id: str
    hostname: str
    agent_id: str
    measured_at: str | None = Field(description="null: not yet.")
    cpu_ns: int | None = Field(description="CPU time since its start.")
    cpu_used: float | None = Field(description="Cores in use, between the last two measurements.")
    cpu_limit: float | None = Field(description="Cores that it may use.")
    memory_bytes: int | None
    memory_limit: int | None
    io_read_bytes: int | None = Field(description="From disks, since its start.")
    io_write_bytes: int | None
    net_rx_bytes: int | None = Field(description="Since its start; null where it shares the node's network.")
    net_tx_bytes: int | None
    pids: int | None = Field(description="Processes and threads.")
    devices: list[KernelDeviceUsageView]
    advisory: list[str] = Field(description="Slots of which nothing holds the container to its part.")

    @classmethod
    def of(cls, usage: KernelUsage, agent_id: str) -> KernelUsageView:
        """Show a container's usage."""
        return cls(
            kernel_id=usage.kernel_id,
            hostname=usage.hostname,
            agent_id=agent_id,
            measured_at=iso(usage.measured_at),
            cpu_ns=usage.cpu_ns,
            cpu_used=usage.cpu_used,
            cpu_limit=usage.cpu_limit,
            memory_bytes=usage.memory_bytes,
            memory_limit=usage.memory_limit,
            io_read_bytes=usage.io_read_bytes,
            io_write_bytes=usage.io_write_bytes,
            net_rx_bytes=usage.net_rx_bytes,
            net_tx_bytes=usage.net_tx_bytes,
            pids=usage.pids,
            devices=[KernelDeviceUsageView.of(device) for device in usage.devices],
            advisory=list(usage.advisory),
        )


class SessionUsageView(_Answer):
    """What a session's containers use now; those that do not run are not there."""

    kernels: list[KernelUsageView]


class DeviceUsageView(_Answer):
    """What of one device is in use, by whomever."""

    slot: str
    id: str
    utilization: float | None = Field(description="0 to 1.")
    memory_used: int | None
    memory_total: int | None
    power_watts: float | None
    temperature_c: float | None

    @classmethod
    def of(cls, usage: DeviceUsage) -> DeviceUsageView:
        """Show a device's usage."""
        return cls(
            slot=usage.slot,
            id=usage.id,
            utilization=usage.utilization,
            memory_used=usage.memory_used,
            memory_total=usage.memory_total,
            power_watts=usage.power_watts,
            temperature_c=usage.temperature_c,
        )


class NodeUsageView(_Answer):
    """What a node uses."""

    measured_at: str | None
    cpu_used: float | None = Field(description="Cores in use, for whatever.")
    memory_bytes: int | None
    memory_total: int | None
    disk_bytes: int | None = Field(description="In use on the disk of the sessions' files.")
    disk_total: int | None
    net_rx_bytes: int | None
    net_tx_bytes: int | None
    devices: list[DeviceUsageView]
    rounds: int = Field(description="Measurements since the agent's start.")
    rounds_skipped: int = Field(description="That were due while the one before was still at it.")

    @classmethod
    def of(cls, usage: NodeUsage) -> NodeUsageView:
        """Show a node's usage."""
        return cls(
            measured_at=iso(usage.measured_at),
            cpu_used=usage.cpu_used,
            memory_bytes=usage.memory_bytes,
            memory_total=usage.memory_total,
            disk_bytes=usage.disk_bytes,
            disk_total=usage.disk_total,
            net_rx_bytes=usage.net_rx_bytes,
            net_tx_bytes=usage.net_tx_bytes,
            devices=[DeviceUsageView.of(device) for device in usage.devices],
            rounds=usage.rounds,
            rounds_skipped=usage.rounds_skipped,
        )

"""What the client returns of usage: as it was last measured, ``None`` where nothing is known."""

from __future__ import annotations

from backendai_ray.client._models import Moment, Record, Text


class DeviceUsage(Record):
    """How much of one device is in use."""

    slot: str
    id: str
    units: int = 0
    """How much of it the container holds; 1000 is all of it."""
    utilization: float | None = None
    """From 0 to 1, by all who use it."""
    memory_used: int | None = None
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: float | None = None


class KernelUsage(Record):
    """What one container uses."""

    kernel_id: str
    hostname: Text = ""
    agent_id: Text = ""
    measured_at: Moment = None
    """``None``: not yet."""
    cpu_ns: int | None = None
    cpu_used: float | None = None
    """Cores in use, between the last two measurements."""
    cpu_limit: float | None = None
    memory_bytes: int | None = None
    memory_limit: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    pids: int | None = None
    devices: tuple[DeviceUsage, ...] = ()
    advisory: tuple[str, ...] = ()
    """Slots of which nothing holds the container to its part."""


class NodeUsage(Record):
    """What a node uses, for whatever."""

    measured_at: Moment = None
    cpu_used: float | None = None
    memory_bytes: int | None = None
    memory_total: int | None = None
    disk_bytes: int | None = None
    disk_total: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    devices: tuple[DeviceUsage, ...] = ()
    rounds: int = 0
    rounds_skipped: int = 0

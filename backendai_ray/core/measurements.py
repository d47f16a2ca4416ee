"""How much of what nodes and kernels use, as an agent measured it last. ``None``: it cannot be found out there.

Counters (``*_ns``, ``*_bytes`` of traffic) count from the kernel's, or the machine's, start and only rise.
"""

from __future__ import annotations

from dataclasses import dataclass

from .device_plugins import DeviceUsage
from .ids import AgentId, DeviceId, KernelId, SessionId
from .slots import SlotName


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDeviceUsage:
    """A kernel's part of one device."""

    slot: SlotName
    id: DeviceId
    units: int
    """How much of it the kernel holds."""
    utilization: float | None = None
    """Of the whole device, from 0 to 1; of a shared one, by all who share it."""
    memory_used: int | None = None
    """By this kernel, in bytes."""
    memory_total: int | None = None
    """Of the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUsage:
    """One kernel."""

    kernel_id: KernelId
    session_id: SessionId
    session_name: str
    hostname: str
    measured_at: float | None = None
    """Unix seconds; ``None``: not yet."""
    cpu_ns: int | None = None
    cpu_used: float | None = None
    """Cores in use, between the last two measurements."""
    cpu_limit: float | None = None
    """Cores that it may use."""
    memory_bytes: int | None = None
    """Without what the system keeps of files and would give back."""
    memory_limit: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    pids: int | None = None
    """Processes and threads."""
    devices: tuple[KernelDeviceUsage, ...] = ()
    advisory: tuple[SlotName, ...] = ()
    """Slots of which nothing holds the kernel to its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUsage:
    """One node and all kernels that run there."""

    agent_id: AgentId
    measured_at: float | None = None
    cpu_ns: int | None = None
    """Of all cores together, in use for whatever."""
    cpu_used: float | None = None
    memory_bytes: int | None = None
    """In use: all memory but what could be had at once."""
    memory_total: int | None = None
    disk_bytes: int | None = None
    """In use on the disk that holds the sessions' files."""
    disk_total: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    devices: tuple[DeviceUsage, ...] = ()
    kernels: tuple[KernelUsage, ...] = ()
    rounds: int = 0
    """Measurements since the agent's start."""
    rounds_skipped: int = 0
    """Measurements that were due while the one before was still at it."""

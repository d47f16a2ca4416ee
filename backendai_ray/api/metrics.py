"""Prometheus metrics: what there is, and how it is written.

Every metric is declared here and nowhere else; the reference page is made from this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from actors.contracts import AgentStatus, AgentView
from backendai_ray.core.ids import AgentId
from backendai_ray.core.measurements import KernelUsage, NodeUsage
from backendai_ray.core.slots import UNITS_PER_COUNT, SlotKind, slot_kind

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is declared."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


_KERNEL = ("node", "session_id", "session", "kernel")
_DEVICE = ("node", "slot", "device")

METRICS: Final = (
    Metric("backendai_sessions_live", "gauge", "Sessions that have not ended."),
    Metric("backendai_node_up", "gauge", "1 while the node is there, else 0.", ("node", "group")),
    Metric("backendai_node_schedulable", "gauge", "1 while new sessions are placed there, else 0.", ("node",)),
    Metric("backendai_node_slot_capacity", "gauge", "What the node gives out; bytes of memory.", ("node", "slot")),
    Metric("backendai_node_slot_occupied", "gauge", "What sessions hold of it.", ("node", "slot")),
    Metric("backendai_node_cpu_seconds_total", "counter", "CPU time of all cores, for whatever.", ("node",)),
    Metric("backendai_node_memory_used_bytes", "gauge", "Memory in use, for whatever.", ("node",)),
    Metric("backendai_node_memory_total_bytes", "gauge", "Memory there is.", ("node",)),
    Metric("backendai_node_disk_used_bytes", "gauge", "In use on the disk of the sessions' files.", ("node",)),
    Metric("backendai_node_disk_total_bytes", "gauge", "Size of that disk.", ("node",)),
    Metric("backendai_node_network_receive_bytes_total", "counter", "Received by the node.", ("node",)),
    Metric("backendai_node_network_transmit_bytes_total", "counter", "Sent by the node.", ("node",)),
    Metric("backendai_node_measurements_total", "counter", "Measurements since the agent's start.", ("node",)),
    Metric(
        "backendai_node_measurements_skipped_total",
        "counter",
        "Measurements that were due while the one before was still at it.",
        ("node",),
    ),
    Metric("backendai_kernel_cpu_seconds_total", "counter", "CPU time of a container.", _KERNEL),
    Metric("backendai_kernel_cpu_limit_cores", "gauge", "Cores that it may use.", _KERNEL),
    Metric("backendai_kernel_memory_used_bytes", "gauge", "Its memory, without inactive file pages.", _KERNEL),
    Metric("backendai_kernel_memory_limit_bytes", "gauge", "Memory that it may use.", _KERNEL),
    Metric("backendai_kernel_io_read_bytes_total", "counter", "Read from disks.", _KERNEL),
    Metric("backendai_kernel_io_write_bytes_total", "counter", "Written to disks.", _KERNEL),
    Metric("backendai_kernel_network_receive_bytes_total", "counter", "Received; not on the process backend.", _KERNEL),
    Metric("backendai_kernel_network_transmit_bytes_total", "counter", "Sent; not on the process backend.", _KERNEL),
    Metric("backendai_kernel_pids", "gauge", "Processes and threads.", _KERNEL),
    Metric("backendai_device_utilization_ratio", "gauge", "How much of its time a device works, 0 to 1.", _DEVICE),
    Metric("backendai_device_memory_used_bytes", "gauge", "Its memory in use.", _DEVICE),
    Metric("backendai_device_memory_total_bytes", "gauge", "Its memory.", _DEVICE),
    Metric("backendai_device_power_watts", "gauge", "What it draws.", _DEVICE),
    Metric("backendai_device_temperature_celsius", "gauge", "How warm it is.", _DEVICE),
)

_Samples = Iterator[tuple[str, tuple[str, ...], float | None]]
"""Metric, values of its labels in order, value; ``None`` is left out."""


def render(views: Iterable[AgentView], usages: Mapping[AgentId, NodeUsage], sessions_live: int) -> str:
    """Return everything in Prometheus' text format: metrics in their order, each with its help."""
    by_name: dict[str, list[str]] = {metric.name: [] for metric in METRICS}
    labels = {metric.name: metric.labels for metric in METRICS}
    for name, values, value in _samples(views, usages, sessions_live):
        if value is not None:
            by_name[name].append(f"{name}{_labels(labels[name], values)} {_number(value)}")
    lines = []
    for metric in METRICS:
        if by_name[metric.name]:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += by_name[metric.name]
    return "\n".join(lines) + "\n"


def _samples(views: Iterable[AgentView], usages: Mapping[AgentId, NodeUsage], sessions_live: int) -> _Samples:
    yield "backendai_sessions_live", (), sessions_live
    for view in views:
        node = view.agent_id
        yield "backendai_node_up", (node, view.resource_group), view.status is AgentStatus.ALIVE
        yield "backendai_node_schedulable", (node,), view.schedulable
        for slot, units in sorted(view.capacity.items()):
            yield "backendai_node_slot_capacity", (node, slot), _amount(slot, units)
            yield "backendai_node_slot_occupied", (node, slot), _amount(slot, view.occupied.get(slot, 0))
        usage = usages.get(node)
        if usage is not None:
            yield from _of_node(usage)
            for kernel in usage.kernels:
                yield from _of_kernel(node, kernel)


def _of_node(usage: NodeUsage) -> _Samples:
    node = (usage.agent_id,)
    yield "backendai_node_cpu_seconds_total", node, _seconds(usage.cpu_ns)
    yield "backendai_node_memory_used_bytes", node, usage.memory_bytes
    yield "backendai_node_memory_total_bytes", node, usage.memory_total
    yield "backendai_node_disk_used_bytes", node, usage.disk_bytes
    yield "backendai_node_disk_total_bytes", node, usage.disk_total
    yield "backendai_node_network_receive_bytes_total", node, usage.net_rx_bytes
    yield "backendai_node_network_transmit_bytes_total", node, usage.net_tx_bytes
    yield "backendai_node_measurements_total", node, usage.rounds
    yield "backendai_node_measurements_skipped_total", node, usage.rounds_skipped
    for device in usage.devices:
        where = (usage.agent_id, device.slot, device.id)
        yield "backendai_device_utilization_ratio", where, device.utilization
        yield "backendai_device_memory_used_bytes", where, device.memory_used
        yield "backendai_device_memory_total_bytes", where, device.memory_total
        yield "backendai_device_power_watts", where, device.power_watts
        yield "backendai_device_temperature_celsius", where, device.temperature_c


def _of_kernel(node: str, usage: KernelUsage) -> _Samples:
    who = (node, usage.session_id, usage.session_name, usage.hostname)
    yield "backendai_kernel_cpu_seconds_total", who, _seconds(usage.cpu_ns)
    yield "backendai_kernel_cpu_limit_cores", who, usage.cpu_limit
    yield "backendai_kernel_memory_used_bytes", who, usage.memory_bytes
    yield "backendai_kernel_memory_limit_bytes", who, usage.memory_limit
    yield "backendai_kernel_io_read_bytes_total", who, usage.io_read_bytes
    yield "backendai_kernel_io_write_bytes_total", who, usage.io_write_bytes
    yield "backendai_kernel_network_receive_bytes_total", who, usage.net_rx_bytes
    yield "backendai_kernel_network_transmit_bytes_total", who, usage.net_tx_bytes
    yield "backendai_kernel_pids", who, usage.pids


def _amount(slot: str, units: int) -> float:
    return units if slot_kind(slot) is SlotKind.BYTES else units / UNITS_PER_COUNT


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

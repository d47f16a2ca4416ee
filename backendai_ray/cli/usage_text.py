"""Usage in a line for people."""

from __future__ import annotations

from collections.abc import Iterator

from backendai_ray.cli.output import size_text
from backendai_ray.client import KernelUsage, NodeUsage


def usage_text(usage: KernelUsage) -> str:
    """Return what a container uses; of what is not known, nothing."""
    return ", ".join(_parts(usage)) or "not measured yet"


def node_usage_text(usage: NodeUsage) -> str:
    """Return what a node uses."""
    parts = []
    if usage.cpu_used is not None:
        parts.append(f"{usage.cpu_used:.2f} cores")
    for name, used, total in (
        ("memory", usage.memory_bytes, usage.memory_total),
        ("disk", usage.disk_bytes, usage.disk_total),
    ):
        if used is not None and total is not None:
            parts.append(f"{size_text(used)} of {size_text(total)} {name}")
    return ", ".join(parts) or "not measured yet"


def _parts(usage: KernelUsage) -> Iterator[str]:
    if usage.cpu_used is not None:
        limit = f" of {usage.cpu_limit:g}" if usage.cpu_limit is not None else ""
        yield f"{usage.cpu_used:.2f}{limit} cores"
    if usage.memory_bytes is not None:
        limit = f" of {size_text(usage.memory_limit)}" if usage.memory_limit is not None else ""
        yield f"{size_text(usage.memory_bytes)}{limit} memory"
    for name, first, second in (
        ("disk read/written", usage.io_read_bytes, usage.io_write_bytes),
        ("received/sent", usage.net_rx_bytes, usage.net_tx_bytes),
    ):
        if first is not None and second is not None:
            yield f"{size_text(first)}/{size_text(second)} {name}"
    if usage.pids is not None:
        yield f"{usage.pids} tasks"
    for device in usage.devices:
        shares = [f"{device.utilization:.0%}"] if device.utilization is not None else []
        if device.memory_used is not None and device.memory_total is not None:
            shares.append(f"{size_text(device.memory_used)} of {size_text(device.memory_total)}")
        if shares:
            yield f"{device.id} {', '.join(shares)}"

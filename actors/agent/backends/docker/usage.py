"""What an engine says of a container's usage, where its control groups cannot be read from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def engine_usage(said: Mapping[str, Any]) -> dict[str, int]:
    """Return what the engine's ``stats`` call says, in the terms of :meth:`ComputeBackend.stats`."""
    memory = said.get("memory_stats") or {}
    if not memory.get("usage"):
        return {}
    files = memory.get("stats") or {}
    idle = files.get("inactive_file", files.get("total_inactive_file", 0))
    found = {
        "cpu_ns": int(said["cpu_stats"]["cpu_usage"]["total_usage"]),
        "memory_bytes": max(0, int(memory["usage"]) - int(idle)),
    }
    networks = (said.get("networks") or {}).values()
    if networks:
        found["net_rx_bytes"] = sum(int(one.get("rx_bytes", 0)) for one in networks)
        found["net_tx_bytes"] = sum(int(one.get("tx_bytes", 0)) for one in networks)
    rows = (said.get("blkio_stats") or {}).get("io_service_bytes_recursive")
    if rows is not None:
        for name, operation in (("io_read_bytes", "read"), ("io_write_bytes", "write")):
            found[name] = sum(int(row["value"]) for row in rows if row.get("op", "").lower() == operation)
    pids = (said.get("pids_stats") or {}).get("current")
    if pids is not None:
        found["pids"] = int(pids)
    return found

"""What a set of processes costs: proportional memory and CPU time, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> set[int]:
    """Return the process and everything it started, directly or not."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def actor_processes(root: int) -> dict[int, str]:
    """Return pid → class name of the actors among a process's descendants."""
    found = {}
    for pid in descendants(root):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except OSError:
            continue
        name = title.removeprefix("ray::").split(".")[0].split("(")[0]
        if title.startswith("ray::") and name.endswith("Actor"):
            found[pid] = name
    return found


def pss_mb(pids: Iterable[int]) -> float:
    """Return the proportional set size of the processes together, in MB (10^6 bytes)."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total / 1e6


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that the living processes have used."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def cpu_percent(pids: set[int], seconds: float) -> float:
    """Return how much of one core the processes use over so many seconds, in percent."""
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - began)

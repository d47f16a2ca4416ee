"""Processes as /proc shows them. A pid alone means nothing after a restart; a pid with its start time does."""

from __future__ import annotations

import os


def start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 when there is none (or only a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Return whether that very process still runs."""
    return pid > 0 and started > 0 and start_time(pid) == started


def children_by_parent() -> dict[int, list[int]]:
    """Return the process tree of the machine as far as we see it."""
    tree: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        tree.setdefault(int(fields[1]), []).append(int(entry))
    return tree


def descendants(pid: int) -> list[int]:
    """Return all living descendants, nearest first."""
    tree = children_by_parent()
    found: list[int] = []
    pending = list(tree.get(pid, ()))
    while pending:
        found.append(pending[0])
        pending = pending[1:] + tree.get(pending[0], [])
    return found

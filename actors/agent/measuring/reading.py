"""Reads the files that say what a kernel or the node uses; :mod:`.cgroup_files` understands them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import cgroup_files

_PROC = Path("/proc")
_WANTED_V1 = ("memory", "cpuacct", "blkio", "pids")


@dataclass(frozen=True, slots=True)
class UsageFiles:
    """Where a kernel's usage is to be read."""

    groups: Mapping[str, tuple[str, int]]
    """Folder and version of its control group, by controller; of version 2, all are the same folder."""
    net_of_pid: int | None = None
    """A process whose network is the kernel's own; ``None``: it shares the node's."""


def files_of_process(pid: int, *, proc: Path = _PROC) -> UsageFiles | None:
    """Return where the usage of a container is to be read, by its first process; ``None`` when that is not seen here.

    A container whose first process is in the node's own group (its id space is not ours) is not seen.
    """
    mounts = cgroup_files.mounted_hierarchies(_read(proc / "self/mounts"))
    groups: dict[str, tuple[str, int]] = {}
    for controller, path in cgroup_files.groups_of_process(_read(proc / str(pid) / "cgroup")):
        mount = mounts.get(controller)
        if mount is None or path in ("/", "") or ".." in path:
            continue
        if controller in _WANTED_V1:
            groups[controller] = (f"{mount}{path}", 1)
        elif not controller and os.path.exists(f"{mount}{path}/cpu.stat"):
            for name in ("memory", "cpu", "io", "pids"):
                groups.setdefault(name, (f"{mount}{path}", 2))
    return UsageFiles(groups, pid) if groups else None


def read_usage(files: UsageFiles, *, proc: Path = _PROC) -> dict[str, int]:
    """Return what a kernel uses, as far as the files say: see :meth:`ComputeBackend.stats`."""
    memory, version = files.groups.get("memory", ("", 0))
    usage = _read(f"{memory}/{'memory.current' if version == 2 else 'memory.usage_in_bytes'}") if memory else ""
    in_use = cgroup_files.number(usage)
    if in_use is not None:
        in_use = cgroup_files.memory_in_use(in_use, _read(f"{memory}/memory.stat"), version=version)
    io = _io(files.groups)
    net = cgroup_files.network(_read(proc / str(files.net_of_pid) / "net/dev")) if files.net_of_pid else None
    pids = files.groups.get("pids", ("", 0))[0]
    found = {
        "cpu_ns": _cpu_ns(files.groups),
        "memory_bytes": in_use,
        "io_read_bytes": io and io[0],
        "io_write_bytes": io and io[1],
        "net_rx_bytes": net and net[0],
        "net_tx_bytes": net and net[1],
        "pids": cgroup_files.number(_read(f"{pids}/pids.current")) if pids else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _cpu_ns(groups: Mapping[str, tuple[str, int]]) -> int | None:
    folder, version = groups.get("cpu", ("", 0))
    if version == 2:
        return cgroup_files.cpu_ns_v2(_read(f"{folder}/cpu.stat"))
    folder, _ = groups.get("cpuacct", ("", 0))
    return cgroup_files.number(_read(f"{folder}/cpuacct.usage")) if folder else None


def _io(groups: Mapping[str, tuple[str, int]]) -> tuple[int, int] | None:
    """Return bytes read and written; an empty file says that there were none, one that is missing says nothing."""
    for controller, name, read in (
        ("io", "io.stat", cgroup_files.io_v2),
        ("blkio", "blkio.throttle.io_service_bytes", cgroup_files.io_v1),
    ):
        folder, _ = groups.get(controller, ("", 0))
        if folder and os.path.exists(f"{folder}/{name}"):
            return read(_read(f"{folder}/{name}"))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """What the machine as a whole uses; ``None`` where it does not say."""

    cpu_ns: int | None = None
    memory_bytes: int | None = None
    memory_total: int | None = None
    disk_bytes: int | None = None
    disk_total: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None


def read_node(folder: Path, *, proc: Path = _PROC) -> NodeFigures:
    """Return what the machine uses; ``folder`` is on the disk that counts."""
    memory = cgroup_files.memory_of_node(_read(proc / "meminfo"))
    net = cgroup_files.network(_read(proc / "1/net/dev") or _read(proc / "self/net/dev"))
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        disk = None
    return NodeFigures(
        cpu_ns=cgroup_files.busy_ns(_read(proc / "stat"), os.sysconf("SC_CLK_TCK")),
        memory_bytes=memory and memory[0],
        memory_total=memory and memory[1],
        disk_bytes=disk and disk.used,
        disk_total=disk and disk.total,
        net_rx_bytes=net and net[0],
        net_tx_bytes=net and net[1],
    )


def group_text(pid: int, *, proc: Path = _PROC) -> str:
    """Return the control groups of a process as text, which names its container; empty when it is gone."""
    return _read(proc / str(pid) / "cgroup")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

"""Control groups, version 1 or 2, whichever is mounted and writable; each limit is used where it can be."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any

PARENT = "backendai-ray"
CONTROLLERS = ("memory", "pids", "cpuset", "cpu", "cpuacct", "io")
"""The last two only count."""
CPU_PERIOD_US = 100_000


def hierarchies() -> dict[str, tuple[str, int]]:
    """Return where each controller we want is mounted, with the version: ``{"memory": ("/…/memory", 1)}``."""
    found: dict[str, tuple[str, int]] = {}
    with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
        rows = [line.split() for line in file]
    for row in rows:
        if row[2] == "cgroup":
            for option in row[3].split(","):
                if option in CONTROLLERS:
                    found.setdefault(option, (row[1], 1))
    for row in rows:
        if row[2] == "cgroup2":
            for name in _read(row[1] + "/cgroup.controllers").split():
                if name in CONTROLLERS:
                    found.setdefault(name, (row[1], 2))
    return found


class Group:
    """The control groups of one kernel; its paths are written down so that anyone can clean up later."""

    def __init__(self, paths: Mapping[str, tuple[str, int]]) -> None:
        self.paths = dict(paths)
        """Controller → (folder, version)."""

    @classmethod
    def create(cls, name: str, limits: Mapping[str, Any]) -> Group:
        """Make the groups that can be made here.

        Args:
            name: Unique on this machine.
            limits: ``memory_bytes``, ``pids``, ``cores`` and ``memory_nodes`` (lists) and ``cpu_units`` (thousandths of
                a core); what is absent or empty is not limited.
        """
        group = cls({})
        for controller, (mount, version) in hierarchies().items():
            parent, path = f"{mount}/{PARENT}", f"{mount}/{PARENT}/{name}"
            try:
                _make_parent(mount, parent, controller, version)
                os.makedirs(path, exist_ok=True)
                _limit(path, controller, version, limits)
                group.paths[controller] = (path, version)
            except OSError:
                group._forget(path)
        return group

    def _forget(self, path: str) -> None:
        if path not in {known for known, _ in self.paths.values()}:
            try:
                os.rmdir(path)
            except OSError:
                pass  # it was not made

    def enter(self) -> None:
        """Put the calling process in."""
        for path in self._folders():
            _write(f"{path}/cgroup.procs", str(os.getpid()))

    def processes(self) -> set[int]:
        """Return who is in."""
        return {int(pid) for path in self._folders() for pid in _read(f"{path}/cgroup.procs").split() if pid.isdigit()}

    def oom_kills(self) -> int:
        """Return how many processes were killed for memory."""
        path, version = self.paths.get("memory", ("", 0))
        if not path:
            return 0
        words = _read(f"{path}/memory.events" if version == 2 else f"{path}/memory.oom_control").split()
        try:
            return int(words[words.index("oom_kill") + 1])
        except (ValueError, IndexError):
            return 0

    def kill(self, timeout_s: float = 10.0) -> bool:
        """Kill everything inside, forks in progress included; returns whether nobody is left."""
        path, version = self.paths.get("pids", ("", 0))
        if path:
            _try_write(f"{path}/pids.max", "0")  # nobody multiplies while we count
        for folder, version in set(self.paths.values()):
            if version == 2:
                _try_write(f"{folder}/cgroup.kill", "1")
        deadline = time.monotonic() + timeout_s
        while left := self.processes():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass  # it was faster
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def remove(self, timeout_s: float = 5.0) -> bool:
        """Remove the groups; returns whether none is left."""
        deadline = time.monotonic() + timeout_s
        left = self._folders()
        while left:
            left = {path for path in left if not _rmdir(path)}
            if left and time.monotonic() > deadline:
                return False
            if left:
                time.sleep(0.005)
        return True

    def _folders(self) -> set[str]:
        return {path for path, _ in self.paths.values()}


def _make_parent(mount: str, parent: str, controller: str, version: int) -> None:
    os.makedirs(parent, exist_ok=True)
    if version == 2:
        for folder in (mount, parent):
            if controller not in _read(f"{folder}/cgroup.subtree_control").split():
                _write(f"{folder}/cgroup.subtree_control", f"+{controller}")
    elif controller == "cpuset":
        _inherit_cpuset(mount, parent)


def _inherit_cpuset(above: str, below: str) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{below}/{name}").strip():
            _write(f"{below}/{name}", _read(f"{above}/{name}").strip())


def _limit(path: str, controller: str, version: int, limits: Mapping[str, Any]) -> None:
    memory, cores, units = limits.get("memory_bytes"), limits.get("cores"), limits.get("cpu_units")
    if controller == "memory" and memory:
        if version == 2:
            _write(f"{path}/memory.max", str(memory))
            _try_write(f"{path}/memory.swap.max", "0")
        else:
            _write(f"{path}/memory.limit_in_bytes", str(memory))
            _try_write(f"{path}/memory.memsw.limit_in_bytes", str(memory))
    elif controller == "pids" and limits.get("pids"):
        _write(f"{path}/pids.max", str(limits["pids"]))
    elif controller == "cpuset":
        if version == 1:
            _inherit_cpuset(os.path.dirname(path), path)
        if cores:
            _write(f"{path}/cpuset.cpus", ",".join(str(core) for core in cores))
        if nodes := limits.get("memory_nodes"):
            _write(f"{path}/cpuset.mems", ",".join(str(node) for node in nodes))
    elif controller == "cpu" and units:
        quota = int(units) * CPU_PERIOD_US // 1000
        if version == 2:
            _write(f"{path}/cpu.max", f"{quota} {CPU_PERIOD_US}")
        else:
            _write(f"{path}/cpu.cfs_period_us", str(CPU_PERIOD_US))
            _write(f"{path}/cpu.cfs_quota_us", str(quota))


def usable_controllers() -> set[str]:
    """Return which limits can be set on this machine, by trying."""
    group = Group.create(f"probe-{os.getpid()}-{time.monotonic_ns()}", {})
    group.remove()
    return set(group.paths)


def groups_named(prefixes: Iterable[str]) -> list[str]:
    """Return the folders of groups whose name begins with one of the prefixes (for clean-up and leak checks)."""
    wanted = tuple(prefixes)
    found = []
    for mount, _ in hierarchies().values():
        try:
            names = os.listdir(f"{mount}/{PARENT}")
        except OSError:
            continue
        found += [f"{mount}/{PARENT}/{name}" for name in names if name.startswith(wanted)]
    return sorted(set(found))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    # One write call, no buffering: the kernel judges each write on its own.
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _try_write(path: str, text: str) -> None:
    try:
        _write(path, text)
    except OSError:
        pass  # this kernel does not have it


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

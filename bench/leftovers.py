"""What a node has of its agent's kernels, found without the agent: in the engine, in /proc and on the disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from actors.agent.backends.box.cgroups import groups_named
from actors.agent.backends.docker.containers import LABEL, life_of
from actors.agent.backends.process.layout import find_boxes

KINDS = ("containers", "networks", "ports", "mounts", "groups", "processes", "directories")
"""What can be left of kernels; descriptors and threads are the actors' own."""

Holding = tuple[tuple[int, ...], int, int]
"""Cores, thousandths of a core, bytes of memory."""


@dataclass(frozen=True, slots=True)
class Node:
    """Where to look."""

    sessions_dir: Path
    engine: docker.APIClient | None
    """``None``: the kernels are processes."""

    def holdings(self) -> dict[str, Holding]:
        """Return what limits the running kernels really have, by kernel id."""
        return self._of_processes() if self.engine is None else self._of_containers(self.engine)

    def _of_containers(self, engine: docker.APIClient) -> dict[str, Holding]:
        found = {}
        for row in self._own(engine, running_only=True):
            life = next(filter(None, map(life_of, row["Names"])), None)
            if life is None:
                continue  # a spare is nobody's yet
            limits = engine.inspect_container(row["Id"])["HostConfig"]
            units = limits["NanoCpus"] // 1_000_000
            if limits.get("CpuQuota"):
                units = limits["CpuQuota"] * 1000 // limits["CpuPeriod"]
            cores = tuple(int(core) for core in limits["CpusetCpus"].split(",") if core)
            found[str(life.kernel_id)] = _holding(cores, units, limits["Memory"])
        return found

    def _of_processes(self) -> dict[str, Holding]:
        found = {}
        for box in find_boxes(self.sessions_dir):
            if box.is_running():
                config = box.read_config()
                limits = config["limits"]
                cores = tuple(limits["cores"])
                found[config["kernel_id"]] = _holding(cores, limits["cpu_units"], limits["memory_bytes"])
        return found

    def leftovers(self, session_ids: Iterable[str], kernel_ids: Iterable[str]) -> Counter[str]:
        """Return how much is left of ended sessions and their kernels, by kind; spares are nothing left over."""
        left: Counter[str] = Counter()
        left["groups"] = len(groups_named(set(kernel_ids) or {"none"}))
        left["processes"] = len(_processes_at(self.sessions_dir))
        spares = {"none"}
        if self.engine is not None:
            rows = self._own(self.engine)
            spares = {name.removeprefix("/") for row in rows for name in row["Names"] if "/spare." in name}
            left["containers"] = len(rows) - len(spares)
            names = {f"backendai-ray-{one}" for one in session_ids}
            left["networks"] = sum(network["Name"] in names for network in self.engine.networks())
            known = [self.engine.inspect_container(row["Id"]) for row in _all_containers(self.engine)]
            left["ports"] = len(_proxied_ports() - _published_ports(known))
            left["mounts"] = len(_overlays() - {one["GraphDriver"]["Data"].get("MergedDir") for one in known})
        left["directories"] = sum(1 for path in self.sessions_dir.iterdir() if path.name not in spares)
        return +left

    def _own(self, engine: docker.APIClient, *, running_only: bool = False) -> list[dict[str, Any]]:
        filters = {"label": f"{LABEL}home={self.sessions_dir}"}
        return list(engine.containers(all=not running_only, filters=filters))


def _holding(cores: tuple[int, ...], units: int, memory_bytes: int) -> Holding:
    return cores, units or 1000 * len(cores), memory_bytes  # whole cores need no quota


def descriptors_and_threads(pids: Iterable[int]) -> dict[str, int]:
    """Return how many open files and threads the processes have together."""
    found = {"descriptors": 0, "threads": 0}
    for pid in pids:
        try:
            found["descriptors"] += len(os.listdir(f"/proc/{pid}/fd"))
            found["threads"] += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue  # it ended meanwhile
    return found


def _all_containers(engine: docker.APIClient) -> list[dict[str, Any]]:
    return list(engine.containers(all=True))


def _processes_at(sessions_dir: Path) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and str(sessions_dir).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _proxied_ports() -> set[int]:
    """Return the host ports that the engine's proxies hold, its forgotten ones included."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:
            continue
        if words and words[0].endswith(b"docker-proxy") and b"-host-port" in words:
            found.add(int(words[words.index(b"-host-port") + 1]))
    return found


def _published_ports(containers: Iterable[Mapping[str, Any]]) -> set[int]:
    bound = [ports for one in containers for ports in (one["NetworkSettings"].get("Ports") or {}).values() if ports]
    return {int(port["HostPort"]) for ports in bound for port in ports}


def _overlays() -> set[str]:
    """Return where root file systems of containers are mounted."""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        rows = [line.split() for line in file]
    return {row[1] for row in rows if row[2] == "overlay" and row[1].endswith("/merged")}

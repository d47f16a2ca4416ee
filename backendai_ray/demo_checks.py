"""What the demo must not leave behind, looked for where it would be: processes, mounts, the engine, files."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

MARK = "BAI_DEMO_RUN"
"""Variable that everything the demo starts inherits."""
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Trace:
    """How the demo's things are known."""

    folder: Path
    """Everything is in it, or mentions it."""
    mark: str

    @classmethod
    def begin(cls, folder: Path) -> Trace:
        """Mark this process and all that it starts from now on."""
        os.environ[MARK] = uuid4().hex
        return cls(folder, os.environ[MARK])


def leftovers(trace: Trace, session_ids: list[str]) -> list[str]:
    """Return what is left of the demo, each as a sentence; empty when all is clean."""
    return [*_processes(trace), *_mounts(trace), *_engine(session_ids), *_files(trace), *_control_groups(session_ids)]


def _processes(trace: Trace) -> list[str]:
    folder, mark = str(trace.folder).encode(), f"{MARK}={trace.mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            is_ours = mark in (process / "environ").read_bytes().split(b"\0") or folder in command
            is_ours = is_ours or os.readlink(process / "cwd").startswith(str(trace.folder))
            is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue  # gone meanwhile, or another user's, and then not ours
        if is_ours and not is_zombie:
            found.append(f"process {process.name}: {command.replace(bytes(1), b' ').decode(errors='replace')[:100]}")
    return found


def _mounts(trace: Trace) -> list[str]:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [f"mount {line.split()[1]}" for line in mounts if str(trace.folder) in line]


def _engine(session_ids: list[str]) -> list[str]:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=30)
    except DockerException:
        return []  # no engine, so nothing of ours in it
    with closing(client):
        things = [(f"container {row['Names'][0]}", row) for row in client.api.containers(all=True) if row.get("Names")]
        things += [(f"network {row['Name']}", row) for row in client.api.networks()]
    return [name for name, row in things if any(one in f"{name} {row.get('Labels')}" for one in session_ids)]


def _files(trace: Trace) -> list[str]:
    left = sorted(trace.folder.rglob("*")) if trace.folder.exists() else []
    more = [f"and {len(left) - _NAMES_SHOWN} more files"] if len(left) > _NAMES_SHOWN else []
    return [f"file {path}" for path in left[:_NAMES_SHOWN]] + more


def _control_groups(session_ids: list[str]) -> list[str]:
    root = Path("/sys/fs/cgroup")
    groups = [Path(folder) / name for folder, names, _ in os.walk(root) for name in names]
    return [f"control group {group}" for group in groups if any(one in group.name for one in session_ids)]

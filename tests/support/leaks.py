"""Finding what a test run started and left behind: processes by a mark they inherit, and what is in the engine."""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from pathlib import Path

import docker
from docker.errors import DockerException

RUN_MARK = "BACKENDAI_RAY_TEST_RUN"
"""Environment variable that every descendant of this test run inherits, daemons that left our tree included."""


def mark_this_run() -> None:
    """Give this process and all that it starts the mark of this run."""
    os.environ[RUN_MARK] = uuid.uuid4().hex


def processes_of_this_run() -> dict[int, str]:
    """Returns command lines by pid of all living processes that carry our mark, ourselves left out."""
    mark = f"{RUN_MARK}={os.environ[RUN_MARK]}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = command.strip()
        except OSError:
            continue  # gone meanwhile, or another user's: not ours then
    return found


def containers_and_networks() -> dict[str, str]:
    """Returns what the engine has now, as sentences by id; nothing where no engine answers."""
    try:
        client = docker.from_env(timeout=60)
    except DockerException:
        return {}
    with closing(client):
        found = {row["Id"]: f"container {row['Names']} of {row['Image']}" for row in client.api.containers(all=True)}
        found |= {row["Id"]: f"network {row['Name']}" for row in client.api.networks()}
        return found

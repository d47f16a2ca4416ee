"""Which link leads into a kernel."""

from __future__ import annotations

from pathlib import Path

from actors.agent.exec_runner import ExecRunner
from actors.agent.folders import life_folder
from actors.agent.journal import KernelRecord
from actors.agent.links import KernelLink
from actors.agent.runner_link import RunnerLink
from actors.agent.workdir import read_untrusted
from actors.agent.workshop import Workshop


def connect_kernel(workshop: Workshop, record: KernelRecord, socket: Path) -> KernelLink:
    """Return a link, not connected yet, to whatever answers in a kernel."""
    if record.has_runner:
        token = read_untrusted(life_folder(workshop.settings.sessions_dir, record.life) / "run" / "token", 256)
        return RunnerLink(socket, token=token.decode(errors="replace").strip())
    run_dir = life_folder(workshop.settings.sessions_dir, record.life) / "run"
    return ExecRunner(workshop.backend, record.life, workshop.offload, run_dir)

"""Where an agent keeps what on its node's disk.

SESSIONS/KERNEL/kernel.json          the record of the kernel
SESSIONS/KERNEL/work/                the session's folder, /home/work in the kernel
SESSIONS/KERNEL/uploads/             uploads that are not complete yet
SESSIONS/KERNEL/container.log        what an ended kernel printed
SESSIONS/KERNEL/life-1.0/run/        the runner's socket, token and results: /run/backendai in the kernel
"""

from __future__ import annotations

from pathlib import Path

from actors.agent.backends.base import KernelFolders, Life
from backendai_ray.core.ids import KernelId


def kernel_folder(sessions_dir: Path, kernel_id: KernelId) -> Path:
    """Return where everything of one kernel is."""
    return sessions_dir / kernel_id


def life_folder(sessions_dir: Path, life: Life) -> Path:
    """Return where everything of one life is."""
    return kernel_folder(sessions_dir, life.kernel_id) / f"life-{life.tag}"


def kernel_folders(sessions_dir: Path, life: Life) -> KernelFolders:
    """Return the folders that a launch needs."""
    root = kernel_folder(sessions_dir, life.kernel_id)
    return KernelFolders(root=root, work=root / "work", run=life_folder(sessions_dir, life) / "run")

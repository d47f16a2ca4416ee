"""NVIDIA's Multi-Process Service: what holds sessions to their parts of a shared GPU, where its daemon runs.

The limits are set by variables that a program could change in its own environment: they keep honest programs apart,
as NVIDIA intends them to. Without the daemon nothing is limited, and the slot is ``advisory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backendai_ray.core.device_plugins import Grant, GrantMount
from backendai_ray.core.slots import UNITS_PER_COUNT

PIPE_DIR = "/tmp/nvidia-mps"
"""Where a kernel finds the daemon's pipes."""

_MIB = 2**20


class Mps:
    """The daemon of one node, found by its pipes."""

    def __init__(self, pipe_dir: Path, shm_dir: str = "") -> None:
        self._pipe_dir = pipe_dir
        self._shm_dir = shm_dir

    def is_on(self) -> bool:
        """Return whether the daemon runs: its control pipe is there, and the process it names lives."""
        if not (self._pipe_dir / "control").exists():
            return False
        try:
            pid = (self._pipe_dir / "nvidia-cuda-mps-control.pid").read_text().strip()
        except OSError:
            return True  # the file is younger than the pipes; what cannot be read says nothing against it
        return Path("/proc", pid).exists() if pid.isdecimal() else True

    def grant(self, units: Sequence[int], memory_bytes: Sequence[int]) -> Grant:
        """Return what holds a kernel to its parts.

        Args:
            units: Thousandths of each GPU, in the order in which the kernel sees them.
            memory_bytes: Of each.
        """
        # There is one percentage for all GPUs of a process: the smallest keeps it within its part on each.
        percent = max(1, min(units) * 100 // UNITS_PER_COUNT)
        limits = ",".join(f"{number}={max(1, size // _MIB)}M" for number, size in enumerate(memory_bytes))
        mounts = [GrantMount(source=str(self._pipe_dir), target=PIPE_DIR, read_only=False)]
        if self._shm_dir:
            mounts.append(GrantMount(source=self._shm_dir, target="/dev/shm", read_only=False))
        return Grant(
            environ={
                "CUDA_MPS_PIPE_DIRECTORY": PIPE_DIR,
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
                "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": limits,
            },
            mounts=tuple(mounts),
        )

"""Kernels that are only said to run: for tests and benches of the control plane with thousands of sessions.

A life is an empty file in the data folder, so it outlives the agent as a container does. Its image has a shell and no
Python, and every command in it does nothing and ends with exit code 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actors.agent.backends.base import (
    BackendInfo,
    ComputeBackend,
    Ending,
    Found,
    Launch,
    Life,
    PreparedImage,
    Tell,
    nobody,
)
from backendai_ray.core.ids import KernelId, SessionId

_IMAGE = "python"


class _NoOp:
    """A command that has ended already; see ``ExecProcess``."""

    def read(self) -> tuple[str, bytes] | None:
        return None

    def exit_code(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        pass

    def resize(self, rows: int, cols: int) -> None:
        pass

    def close(self) -> None:
        pass


class SimBackend(ComputeBackend):
    """See the module."""

    name = "sim"

    @property
    def _folder(self) -> Path:
        return self.settings.data_dir / "sim" / self.agent_id

    def _file(self, life: Life) -> Path:
        return self._folder / f"{life.kernel_id}@{life.attempt}.{life.epoch}"

    def open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        pass

    def probe(self) -> BackendInfo:
        return BackendInfo(architecture=os.uname().machine, labels={"isolation": "none: nothing runs"})

    def health(self) -> str:
        return ""

    def images(self) -> Sequence[str]:
        return [_IMAGE]

    def is_prepared(self, reference: str) -> bool:
        return True

    def prepare_image(self, reference: str, architecture: str, tell: Tell = nobody) -> PreparedImage:
        return PreparedImage(reference=reference, id=reference, shell="/bin/sh")

    def launch(self, launch: Launch) -> str:
        self._file(launch.life).touch()
        return f"sim-{launch.life}"

    def list_own(self) -> Sequence[Found]:
        found = []
        for path in self._folder.iterdir():
            kernel_id, _, tag = path.name.partition("@")
            attempt, _, epoch = tag.partition(".")
            life = Life(kernel_id=KernelId(kernel_id), attempt=int(attempt), epoch=int(epoch))
            found.append(Found(life=life, container_id=f"sim-{life}", is_running=True))
        return found

    def watch(self, on_end: Callable[[Life], None]) -> None:
        pass

    def is_running(self, life: Life) -> bool:
        return self._file(life).exists()

    def oom_kills(self, life: Life) -> int:
        return 0

    def log(self, life: Life, max_bytes: int) -> bytes:
        return b""

    def stats(self, life: Life) -> Mapping[str, int]:
        return {}

    def stop(self, life: Life, grace_s: float) -> Ending:
        self._file(life).unlink(missing_ok=True)
        return Ending(exit_code=0)

    def remove(self, life: Life, gang: SessionId | None = None) -> None:
        self._file(life).unlink(missing_ok=True)

    def exec(self, life: Life, argv: Sequence[str], *, tty: bool = False, rows: int = 24, cols: int = 80) -> _NoOp:
        """Do nothing."""
        return _NoOp()

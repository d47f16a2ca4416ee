"""The record of each kernel on the node's disk: what was ordered, how far it got, how it ended.

A record is written whole and synced before anybody is told, and replaced, never edited; so after a crash there is
either the state before or the state after. What the engine knows of itself (does the container run?) is not kept
here: it is asked.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from actors.agent.backends.base import Life
from actors.agent.folders import kernel_folder
from backendai_ray import records
from backendai_ray.core.ids import AgentId, KernelId, is_uuid
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from backendai_ray.core.slots import SlotName

log = structlog.get_logger()

_NAME = "kernel.json"
ABANDONED_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Somebody wants the kernel to end."""

    reason: Reason
    forced: bool = False
    grace_s: float | None = None
    """How long its processes have between the notice and the kill; ``None``: as the settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """The startup command of a session, run once per life."""

    command: str
    timeout_s: float | None
    exit_code: int | None = None
    """Set when it has finished."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """All that an agent must not forget of one kernel."""

    agent_id: AgentId
    spec: KernelSpec
    uid: int
    backend: str = ""
    """What its lives are lives of."""
    status: Status = Status.PREPARING
    epoch: int = 0
    """Of the present life; a restart raises it."""
    restart_to: int | None = None
    """The epoch of the next life, once a restart is ordered and until the present life is gone."""
    route_epoch: int = 0
    """Routes of earlier epochs are refused."""
    session_name: str = ""
    container_id: str = ""
    has_runner: bool = True
    """False for an image without Python, whose kernel is reached through the engine's exec."""
    advisory: tuple[SlotName, ...] = ()
    """Slots of which nothing holds the present life to its part."""
    stop: StopOrder | None = None
    startup: Startup | None = None
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    retryable: bool = False
    format: int = 1

    @property
    def life(self) -> Life:
        return Life(kernel_id=self.spec.kernel_id, attempt=self.spec.attempt, epoch=self.epoch)

    @property
    def has_ended(self) -> bool:
        return self.status is Status.TERMINATED

    def restarted(self, epoch: int) -> KernelRecord:
        """Return the record of the next life."""
        restart_to = self.restart_to if (self.restart_to or 0) > epoch else None
        return replace(
            self, epoch=epoch, restart_to=restart_to, status=Status.PREPARING, startup=None, container_id="", message=""
        )

    def fact(self, log_tail: bytes = b"") -> KernelFact:
        """Return what the Manager is told."""
        startup = self.startup
        return KernelFact(
            kernel_id=self.spec.kernel_id,
            session_id=self.spec.session_id,
            status=self.status,
            reason=self.reason,
            message=self.message,
            exit_code=self.exit_code,
            container_id=self.container_id,
            allocation=self.spec.allocation,
            attempt=self.spec.attempt,
            retryable=self.retryable,
            startup_exit_code=startup.exit_code if startup else None,
            startup_timed_out=startup.timed_out if startup else False,
            log_tail=log_tail,
        )


class Journal:
    """Reads and writes the records of one agent. Every method blocks on the disk; call it from a worker thread."""

    def __init__(self, sessions_dir: Path, agent_id: AgentId) -> None:
        self._dir = sessions_dir
        self._agent_id = agent_id

    def begin(self, records_to_begin: Sequence[KernelRecord]) -> None:
        """Make the folders of new kernels and write their records; all is on disk when this returns."""
        for record in records_to_begin:
            root = kernel_folder(self._dir, record.spec.kernel_id)
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            for name in ("work", "uploads"):
                (root / name).mkdir(mode=0o700, exist_ok=True)
            if record.uid != os.geteuid():
                os.chown(root / "work", record.uid, record.uid)
            self.write(record)
        _sync(self._dir)

    def write(self, record: KernelRecord, *, durable: bool = True) -> None:
        """Replace a kernel's record; with ``durable`` it is on disk when this returns."""
        root = kernel_folder(self._dir, record.spec.kernel_id)
        temporary = root / f"{_NAME}.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(records.encode(record))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(root / _NAME)
        if durable:
            _sync(root)

    def load(self) -> list[KernelRecord]:
        """Return all records of this agent that can be read; a damaged one is reported and left for the operator."""
        found = []
        for path in sorted(self._dir.glob(f"*/{_NAME}")):
            try:
                record = records.decode(path.read_bytes(), KernelRecord)
            except (OSError, records.DecodeError) as error:
                log.error("journal.damaged_record", path=str(path), error=str(error)[:200])
                continue
            if record.agent_id == self._agent_id and record.spec.kernel_id == path.parent.name:
                found.append(record)
        return found

    def forget(self, kernel_id: KernelId) -> None:
        """Delete all that is left of a kernel."""
        if not is_uuid(kernel_id):
            log.error("journal.odd_kernel_id", kernel_id=kernel_id)
            return
        root = kernel_folder(self._dir, kernel_id)
        # The record goes first: a folder without one is never taken for a kernel after a crash in between.
        (root / _NAME).unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)

    def sweep(self) -> None:
        """Delete folders without a record: left by a crash while a kernel was begun or forgotten.

        Only old ones: another agent that shares the folder may be about to write its record.
        """
        for root in self._dir.iterdir() if self._dir.exists() else ():
            if not is_uuid(root.name) or (root / _NAME).exists() or any(root.glob("life-*/box/config.json")):
                continue
            if time.time() - root.stat().st_mtime > ABANDONED_AFTER_S:
                shutil.rmtree(root, ignore_errors=True)

    # ── logs of ended kernels ──────────────────────────────────────────────────────────────────────────────────────

    def save_log(self, kernel_id: KernelId, text: bytes) -> None:
        """Keep what an ended kernel printed; a full disk costs the log and nothing else."""
        try:
            (kernel_folder(self._dir, kernel_id) / "container.log").write_bytes(text)
        except OSError as error:
            log.warning("journal.log_lost", kernel_id=kernel_id, error=str(error))

    def read_log(self, kernel_id: KernelId, max_bytes: int) -> bytes:
        """Return the end of what an ended kernel printed."""
        try:
            return (kernel_folder(self._dir, kernel_id) / "container.log").read_bytes()[-max_bytes:]
        except OSError:
            return b""


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

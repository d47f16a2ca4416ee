"""What all kernels of an agent share, and how one of their lives is launched."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from actors.agent.backends.base import ComputeBackend, Launch, PreparedImage
from actors.agent.backends.environ import BOOTSTRAP_NAME, TOKEN_NAME, kernel_environ
from actors.agent.facts import FactQueue
from actors.agent.folders import kernel_folders
from actors.agent.hardware import Hardware
from actors.agent.held import HeldDevices
from actors.agent.images import ImageDesk
from actors.agent.journal import Journal, KernelRecord
from actors.agent.links import KernelLink
from actors.agent.offload import Offload
from actors.agent.spares import SparePool
from backendai_ray.config import Settings
from backendai_ray.core.slots import SlotName

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What all kernels of an agent share."""

    settings: Settings
    backend: ComputeBackend
    hardware: Hardware
    offload: Offload
    journal: Journal
    facts: FactQueue
    held: HeldDevices
    spares: SparePool
    images: ImageDesk
    starts: asyncio.Semaphore
    """As many kernels are made at the same time."""
    sessions_fd: int
    """The open sessions folder: sockets are reached through it, since their own paths may be too long."""
    connect: ConnectKernel
    """Makes a link to the runner behind a socket (or to the shell, where there is no runner)."""


ConnectKernel = Callable[[Workshop, KernelRecord, Path], KernelLink]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A life that was started."""

    container_id: str
    environ: Mapping[str, str]
    """For the runner of a spare, which was started without it."""
    advisory: tuple[SlotName, ...]
    """Slots of which nothing holds it to its part."""


def launch_life(shop: Workshop, record: KernelRecord, image: PreparedImage) -> Launched:
    """Lay out the folders and have the backend start the record's life. Blocks."""
    spec = record.spec
    grant = shop.hardware.grant(spec.allocation)
    launch = Launch(
        life=record.life,
        spec=spec,
        image=image,
        folders=kernel_folders(shop.settings.sessions_dir, record.life),
        grant=grant,
        environ=kernel_environ(spec, grant),
        pids_limit=shop.settings.agent.pids_limit,
        ulimits=shop.settings.agent.rlimits(),
        engine_log_bytes=shop.settings.agent.engine_log_bytes,
        uid=record.uid,
        output_buffer_bytes=shop.settings.agent.output_buffer_bytes,
        runtime=image.runtime_for(spec.runtime),
    )
    log.info("kernel.launched", session_id=spec.session_id, kernel_id=spec.kernel_id, called_at=time.time())
    container_id = shop.spares.start(launch)
    if container_id is None:
        _lay_out(launch)
        container_id = shop.backend.launch(launch)
    return Launched(container_id=container_id, environ=launch.environ, advisory=grant.advisory)


def _lay_out(launch: Launch) -> None:
    """Make the folders of a life and write what its runner reads."""
    run, uid = launch.folders.run, launch.uid
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    run.parent.chmod(0o711)
    for name, text in ((TOKEN_NAME, secrets.token_hex(16)), (BOOTSTRAP_NAME, launch.spec.bootstrap_script)):
        if text:
            _write_once(run / name, text, uid)
    _give_to(run, uid)


def _write_once(path: Path, text: str, uid: int) -> None:
    """Write a file for the kernel, unless an earlier try did: what is there may be the kernel's doing, so keep off."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    _give_to(path, uid)


def _give_to(path: Path, uid: int) -> None:
    if uid != os.geteuid():
        os.chown(path, uid, uid, follow_symlinks=False)

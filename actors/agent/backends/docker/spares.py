"""Containers started ahead, and how one becomes a kernel's.

What the engine cannot change later must be the same for all: image, user, mounts, host name, labels. So a spare knows
no kernel by its labels; once handed over it is known by its name, which the engine lets only one container have.
Its folders are mounted from a folder of its own and moved to the kernel's: a mount follows what it was made of.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from docker.api.client import APIClient
from docker.errors import APIError, NotFound

from actors.agent.backends.base import KernelFolders, Launch, Life, PreparedImage, Spare
from actors.agent.backends.docker.containers import SPARE_LABEL, container_name, create_arguments, life_of
from actors.agent.backends.environ import RUN_DIR, SOCKET_NAME, TOKEN_NAME, kernel_environ
from actors.agent.devices.base import Grant
from backendai_ray.config import Settings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.runtimes import PYTHON
from backendai_ray.core.sessions import KernelSpec, SessionType
from backendai_ray.core.slots import ResourceSlots

HOST: Final = "main1"
SHMEM_BYTES: Final = 64 * 2**20
MEMORY_BYTES: Final = 128 * 2**20
"""Of a spare; its runner needs some 15 MiB."""
READY_TIMEOUT_S: Final = 20.0
_PERIOD_US: Final = 100_000
_NEEDED_AT_START: Final = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
"""Variables that a Python looks at when it starts, and only then."""


def fits(launch: Launch) -> bool:
    """See :meth:`actors.agent.backends.base.SupportsSpares.fits_spare`."""
    spec, grant = launch.spec, launch.grant
    needs = replace(grant, cores=(), cpu_units=0, memory_bytes=0, environ={}, defaults={}, advisory=())
    return (
        bool(launch.image.python)
        and len(spec.cluster_hosts) <= 1
        and spec.hostname == HOST
        and not spec.preopen_ports
        and not spec.bootstrap_script
        and launch.runtime == PYTHON
        and spec.shmem_bytes == SHMEM_BYTES
        and needs == Grant()  # no device files or whatever else a plug-in may ask for
        and grant.memory_bytes >= MEMORY_BYTES
        and not any(name.startswith(_NEEDED_AT_START) for name in (*spec.environ, *grant.environ, *grant.defaults))
        and not _has_entries(launch.folders.work)
    )


def make(
    api: APIClient,
    settings: Settings,
    spare: Spare,
    image: PreparedImage,
    *,
    own: Mapping[str, str],
    runner_dir: Path,
    uid: int,
) -> Spare:
    """Start a spare's container and wait for its runner; the caller removes what there is when that fails."""
    root = folder(settings, spare.name)
    run, work = root / "run", root / "work"
    root.mkdir(mode=0o711, parents=True)
    for path in (run, work):
        path.mkdir(mode=0o700)
    (run / TOKEN_NAME).write_text(uuid.uuid4().hex)
    (run / TOKEN_NAME).chmod(0o600)
    for path in (run, work, run / TOKEN_NAME):
        if uid != os.geteuid():
            os.chown(path, uid, uid)
    launch = _launch(settings, image, KernelFolders(root=root, work=work, run=run), uid)
    arguments = create_arguments(api, launch, own=own, runner_dir=runner_dir, network="")
    arguments["name"] = spare.name
    arguments["labels"] = {**own, SPARE_LABEL: "yes"}
    arguments["entrypoint"] = [*arguments["entrypoint"], "--spare", "yes"]
    made = replace(spare, container_id=str(api.create_container(**arguments)["Id"]))
    api.start(made.container_id)
    _wait_for_runner(run)
    return made


def hand_over(api: APIClient, settings: Settings, spare: Spare, launch: Launch) -> str | None:
    """See :meth:`actors.agent.backends.base.SupportsSpares.hand_over`."""
    if not _listens(folder(settings, spare.name) / "run"):
        return None
    try:
        api.rename(spare.container_id, container_name(launch.life))
    except APIError as error:
        if error.status_code in (404, 409):  # it is gone, or an earlier call has made the life's container
            return None
        raise
    try:
        complete(api, spare.container_id, folder(settings, spare.name), launch)
    except BaseException:
        shutil.rmtree(launch.folders.run, ignore_errors=True)  # its socket is of a container that will be removed
        raise
    return spare.container_id


def complete(api: APIClient, container_id: str, root: Path, launch: Launch) -> None:
    """Give a container that has a life's name that life's folders and limits; may be repeated.

    Args:
        api: The engine.
        container_id: The spare's.
        root: Where the spare's folders were made.
        launch: Which life it becomes.

    Raises:
        KernelStartFailed: the kernel's folder is in use.
    """
    _move_folders(root, launch.folders)
    grant = launch.grant
    limits: dict[str, Any] = {"mem_limit": grant.memory_bytes, "memswap_limit": grant.memory_bytes}
    if grant.cores:
        limits["cpuset_cpus"] = ",".join(str(core) for core in grant.cores)
    if grant.cpu_units:  # the SDK's call that changes limits has no thousandths of a core
        limits |= {"cpu_period": _PERIOD_US, "cpu_quota": grant.cpu_units * _PERIOD_US // 1000}
    api.update_container(container_id, **limits)


def _move_folders(root: Path, folders: KernelFolders) -> None:
    run = root / "run"
    if run.exists():
        # Laid out by a start that did not know of the spare; nobody can be using it, as the spare's own is here.
        shutil.rmtree(folders.run, ignore_errors=True)
        folders.run.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        folders.run.parent.chmod(0o711)
        run.rename(folders.run)
    if (root / "work").exists():
        try:
            (root / "work").rename(folders.work)  # over the empty one
        except OSError as error:
            raise KernelStartFailed(f"the session's folder is in use already: {error}", retryable=True) from error
    shutil.rmtree(root, ignore_errors=True)


def new_name(agent_id: AgentId) -> str:
    """Return a name that no spare had before."""
    return f"{_prefix(agent_id)}{uuid.uuid4().hex[:12]}"


def folder(settings: Settings, spare_name: str) -> Path:
    """Return where a spare's folders are until they are moved."""
    return settings.sessions_dir / spare_name


def clear_folders(settings: Settings, agent_id: AgentId, rows: Iterable[Mapping[str, Any]]) -> None:
    """Delete the folders of an agent's spares whose containers are gone; ``rows`` are all of its containers."""
    used = {root for row in rows if (root := root_of(row)) is not None}
    for path in settings.sessions_dir.glob(f"{_prefix(agent_id)}*"):
        if path not in used:
            shutil.rmtree(path, ignore_errors=True)


def root_of(container: Mapping[str, Any]) -> Path | None:
    """Return where the folders were made that a container has mounted (its facts, or a row of the list)."""
    sources = (mount.get("Source") for mount in container.get("Mounts") or () if mount.get("Destination") == RUN_DIR)
    return next((Path(source).parent for source in sources if source), None)


def remove(api: APIClient, settings: Settings, spare: Spare) -> None:
    """See :meth:`actors.agent.backends.base.SupportsSpares.remove_spare`."""
    try:
        api.remove_container(spare.container_id or spare.name, force=True, v=True)
    except NotFound:
        pass  # it is what we want
    except APIError as error:
        if error.status_code != 409:  # 409: it is being removed
            raise
    shutil.rmtree(folder(settings, spare.name), ignore_errors=True)


def read(row: Mapping[str, Any]) -> Spare | None:
    """Read a row of the engine's container list; ``None`` when it is no spare, or a life by now."""
    if SPARE_LABEL not in (row.get("Labels") or {}):
        return None
    names = [name.removeprefix("/") for name in row.get("Names") or ()]
    if not names or any(life_of(name) for name in names):
        return None
    return Spare(name=names[0], container_id=row["Id"], image_id=row.get("ImageID", ""), reference="")


def _prefix(agent_id: AgentId) -> str:
    return f"spare.{agent_id}."


def _launch(settings: Settings, image: PreparedImage, folders: KernelFolders, uid: int) -> Launch:
    """Return a launch that says nothing of any session."""
    nobody = KernelSpec(
        kernel_id=KernelId(""),
        session_id=SessionId(""),
        session_name="",
        access_key=AccessKey(""),
        session_type=SessionType.INTERACTIVE,
        image=image.reference,
        architecture="",
        role="main",
        index=1,
        hostname=HOST,
        cluster_hosts=(),
        slots=ResourceSlots({}),
        allocation=Allocation(()),
        shmem_bytes=SHMEM_BYTES,
        environ={},
    )
    return Launch(
        life=Life(kernel_id=KernelId(""), attempt=0, epoch=0),
        spec=nobody,
        image=image,
        folders=folders,
        grant=Grant(memory_bytes=MEMORY_BYTES),
        environ=kernel_environ(nobody, Grant()),
        pids_limit=settings.agent.pids_limit,
        uid=uid,
        output_buffer_bytes=settings.agent.output_buffer_bytes,
    )


def _has_entries(path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return True


def _wait_for_runner(run: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _listens(run):
        if time.monotonic() > deadline:
            raise KernelStartFailed("its runner does not listen", retryable=True)
        time.sleep(0.02)


def _listens(run: Path) -> bool:
    """Return whether somebody listens on the runner's socket: a runner that died does not."""
    try:
        handle = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(f"/proc/self/fd/{handle}/{SOCKET_NAME}")  # the path itself may be too long for a socket
            return True
    except OSError:
        return False
    finally:
        os.close(handle)

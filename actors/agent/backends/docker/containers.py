"""What a kernel's container looks like to the engine: names, labels and the one create call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docker.api.client import APIClient
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from actors.agent.backends.base import Found, Launch, Life
from actors.agent.backends.environ import (
    PYZMQ_DIR,
    RUN_DIR,
    RUNNER_DIR,
    WORK_DIR,
    runner_command,
    with_bootstrap,
)
from backendai_ray.core.device_plugins import DeviceRequest as GrantedRequest
from backendai_ray.core.ids import KernelId

LABEL = "backendai-ray."
"""Prefix of our labels on containers and networks."""

SPARE_LABEL = f"{LABEL}spare"
"""Marks a container that was started ahead: it is a life's if it has a life's name (see :mod:`.spares`)."""

_IDLE = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"
"""What a container without a runner does until it is stopped."""


def container_name(life: Life) -> str:
    """Return the engine's name of a life: unique, so that the engine itself refuses to make it twice."""
    return f"backendai-ray-{life}"


def life_of(name: str) -> Life | None:
    """Return the life whose name a container has; ``None`` when it is no life's."""
    prefix, _, tag = name.removeprefix("/").rpartition("-")
    kernel_id = prefix.removeprefix("backendai-ray-")
    attempt, _, epoch = tag.partition(".")
    if kernel_id == prefix or not (attempt.isdigit() and epoch.isdigit()):
        return None
    return Life(kernel_id=KernelId(kernel_id), attempt=int(attempt), epoch=int(epoch))


def own_labels(agent_id: str, home: Path) -> dict[str, str]:
    """Return what marks everything of one agent.

    The home, the folder of its kernels' records, tells clusters apart that share an engine and call their nodes
    alike, as two on one machine do.
    """
    return {f"{LABEL}agent-id": agent_id, f"{LABEL}home": str(home)}


def labels_of(launch: Launch, own: Mapping[str, str]) -> dict[str, str]:
    """Return all that is needed to know the container again."""
    spec = launch.spec
    return {
        **own,
        f"{LABEL}kernel-id": spec.kernel_id,
        f"{LABEL}session-id": spec.session_id,
        f"{LABEL}attempt": str(launch.life.attempt),
        f"{LABEL}epoch": str(launch.life.epoch),
        f"{LABEL}owner": spec.access_key,
        f"{LABEL}role": spec.hostname,
    }


def found_from(row: Mapping[str, Any]) -> Found | None:
    """Read a row of the engine's container list; ``None`` when it is no life of ours."""
    labels = row.get("Labels") or {}
    was_spare = SPARE_LABEL in labels
    life = named_life(row) or (None if was_spare else _labelled(labels))
    if life is None:
        return None
    return Found(
        life=life,
        container_id=row["Id"],
        is_running=row.get("State") in ("running", "paused", "restarting"),
        session_id=labels.get(f"{LABEL}session-id", ""),
        was_spare=was_spare,
    )


def named_life(row: Mapping[str, Any]) -> Life | None:
    """Return the life that a container has the name of; the engine gives a name to one container alone."""
    return next(filter(None, map(life_of, row.get("Names") or ())), None)


def _labelled(labels: Mapping[str, str]) -> Life | None:
    try:
        return Life(
            kernel_id=KernelId(labels[f"{LABEL}kernel-id"]),
            attempt=int(labels[f"{LABEL}attempt"]),
            epoch=int(labels[f"{LABEL}epoch"]),
        )
    except (KeyError, ValueError):
        return None


def create_arguments(
    api: APIClient, launch: Launch, *, own: Mapping[str, str], runner_dir: Path | None, network: str
) -> dict[str, Any]:
    """Return the arguments of the engine's create call; everything in one call.

    Args:
        api: Knows which API version the engine speaks.
        launch: What to start.
        own: The labels that mark everything of this agent.
        runner_dir: The runner on the host; ``None`` for an image without Python.
        network: The gang's network; empty for a kernel on its own.
    """
    spec = launch.spec
    ports: dict[int | str, Any] = dict.fromkeys(spec.preopen_ports, ("127.0.0.1", None))
    arguments: dict[str, Any] = {
        "image": launch.image.id,
        "name": container_name(launch.life),
        "hostname": spec.hostname,
        "user": f"{launch.uid}:{launch.uid}",
        "working_dir": WORK_DIR,
        "environment": dict(launch.environ),
        "labels": labels_of(launch, own),
        "entrypoint": _command(launch, has_runner=runner_dir is not None),
        "command": [],
        "ports": list(ports),
        "host_config": _host_config(api, launch, runner_dir, network, ports),
    }
    if network:
        endpoint: Any = {network: api.create_endpoint_config(aliases=[spec.hostname])}
        arguments["networking_config"] = api.create_networking_config(endpoint)
    return arguments


def _command(launch: Launch, *, has_runner: bool) -> list[str]:
    has_bootstrap = bool(launch.spec.bootstrap_script) and bool(launch.image.shell)
    if not has_runner:
        idle = [launch.image.shell or "/bin/sh", "-c", _IDLE]
        return with_bootstrap(idle, RUN_DIR) if has_bootstrap else idle
    return runner_command(
        launch.image.python,
        runner_dir=RUNNER_DIR,
        pyzmq_dir=PYZMQ_DIR if launch.image.pyzmq_dir else "",
        run_dir=RUN_DIR,
        workdir=WORK_DIR,
        runtime=launch.runtime,
        buffer_bytes=launch.output_buffer_bytes,
        bootstrap=has_bootstrap,
    )


def _host_config(
    api: APIClient, launch: Launch, runner_dir: Path | None, network: str, ports: dict[int | str, Any]
) -> dict[str, Any]:
    grant = launch.grant
    options: dict[str, Any] = {}
    if grant.cores:
        options["cpuset_cpus"] = ",".join(str(core) for core in grant.cores)
    if grant.cpu_units:
        options["nano_cpus"] = grant.cpu_units * 1_000_000
    if grant.memory_bytes:
        options["mem_limit"] = options["memswap_limit"] = grant.memory_bytes
    if grant.device_paths:
        options["devices"] = [f"{path}:{path}:rw" for path in grant.device_paths]
    if grant.device_requests:
        options["device_requests"] = [_device_request(request) for request in grant.device_requests]
    if network:
        options["network_mode"] = network
    return dict(
        api.create_host_config(
            mounts=_mounts(launch, runner_dir),
            shm_size=launch.spec.shmem_bytes or None,
            pids_limit=launch.pids_limit,
            ulimits=[Ulimit(name="core", soft=0, hard=0)],
            init=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            log_config=LogConfig(type="json-file", config={"max-size": "2m", "max-file": "2"}),
            port_bindings=ports or None,
            **options,
        )
    )


def _device_request(request: GrantedRequest) -> DeviceRequest:
    capabilities = [list(request.capabilities)] if request.capabilities else []
    return DeviceRequest(driver=request.driver, device_ids=list(request.device_ids), capabilities=capabilities)


def _mounts(launch: Launch, runner_dir: Path | None) -> list[Mount]:
    mounts = [
        Mount(WORK_DIR, str(launch.folders.work), type="bind"),
        Mount(RUN_DIR, str(launch.folders.run), type="bind"),
    ]
    if runner_dir is not None:
        mounts.append(Mount(RUNNER_DIR, str(runner_dir), type="bind", read_only=True))
        if launch.image.pyzmq_dir is not None:
            mounts.append(Mount(PYZMQ_DIR, str(launch.image.pyzmq_dir), type="bind", read_only=True))
    granted = launch.grant.mounts
    mounts += [Mount(one.target, one.source, type="bind", read_only=one.read_only) for one in granted]
    return mounts

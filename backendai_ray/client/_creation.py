"""What a session is asked for with, as the body of the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any, TypedDict, Unpack

from backendai_ray.core.sessions import ClusterMode, DependencyFailure, SessionType

Amount = str | int | float


class Creation(TypedDict, total=False):
    """The arguments of ``sessions.create`` that say what the session is; see there for their meaning."""

    name: str | None
    type: SessionType | str
    cpu: Amount
    mem: Amount
    resources: Mapping[str, Amount] | None
    shmem: Amount | None
    cluster_size: int
    cluster_mode: ClusterMode | str
    env: Mapping[str, str] | None
    startup_command: str | None
    bootstrap_script: str | None
    runtime: str | None
    batch_timeout_s: float | None
    priority: int | None
    requeue: bool | None
    starts_at: str | None
    depends_on: Sequence[str]
    dependency_failure: DependencyFailure | str
    pending_timeout_s: float | None
    resource_group: str | None
    agents: Sequence[str]
    preopen_ports: Sequence[int]
    callback_url: str | None
    tag: str | None
    reuse: bool


def creation_body(image: str, **asked: Unpack[Creation]) -> dict[str, Any]:
    """Return the body of a create call; what is not given keeps the server's default."""
    slots = {"cpu": asked.get("cpu", 1), "mem": asked.get("mem", "512m"), **(asked.get("resources") or {})}
    shmem = asked.get("shmem")
    config = {
        "resources": {slot: str(amount) for slot, amount in slots.items()},
        "resource_opts": {"shmem": str(shmem)} if shmem is not None else {},
        "environ": dict(asked.get("env") or {}),
        "scalingGroup": asked.get("resource_group"),
        "agentList": list(asked.get("agents") or ()) or None,
        "preopen_ports": list(asked.get("preopen_ports") or ()) or None,
    }
    kind = str(asked.get("type", SessionType.INTERACTIVE))
    name = asked.get("name")
    on_failure = asked.get("dependency_failure", DependencyFailure.CANCEL)
    body = {
        "image": image,
        "name": name if name is not None else f"{kind[:11]}-{token_hex(4)}",
        "type": kind,
        "clusterSize": asked.get("cluster_size", 1),
        "clusterMode": str(asked.get("cluster_mode", ClusterMode.SINGLE_NODE)),
        "startupCommand": asked.get("startup_command"),
        "bootstrap_script": asked.get("bootstrap_script"),
        "runtime": asked.get("runtime"),
        "batch_timeout": asked.get("batch_timeout_s"),
        "priority": asked.get("priority"),
        "requeue": asked.get("requeue"),
        "starts_at": asked.get("starts_at"),
        "dependencies": list(asked.get("depends_on") or ()) or None,
        "dependency_failure": str(on_failure) if on_failure != DependencyFailure.CANCEL else None,
        "pending_timeout": asked.get("pending_timeout_s"),
        "callbackURL": asked.get("callback_url"),
        "tag": asked.get("tag"),
        "reuseIfExists": asked.get("reuse", False),
        "enqueueOnly": True,
        "config": _given(config),
    }
    return _given(body)


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}

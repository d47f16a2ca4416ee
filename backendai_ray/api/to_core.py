"""The one place where a create call becomes a session of the domain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from actors.contracts import Keypair
from backendai_ray.api.schemas.create import CreateSession, SessionConfig
from backendai_ray.core.errors import Forbidden, InvalidParameter
from backendai_ray.core.ids import AccessKey, AgentId, ResourceGroupName, SessionId, parse_agent_id, parse_session_name
from backendai_ray.core.runtimes import parse_runtime
from backendai_ray.core.sessions import ClusterMode, DependencyFailure, SessionSpec, SessionType
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, parse_amount

DEFAULT_RESOURCES: Mapping[str, object] = {CPU: 1, MEM: "1g"}
_DEFAULT_SHMEM = 64 * 2**20
_FARTHEST_START_S = 3653 * 86400.0
_MAX_ENVIRON_BYTES = 128 * 1024
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPAN = re.compile(r"\+?([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(s|sec|m|min|h|hr|d|w)?")
_SPAN_UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86400, "w": 604800}


def to_core(
    body: CreateSession,
    *,
    session_id: SessionId,
    owner: AccessKey,
    keypair: Keypair,
    depends_on: tuple[SessionId, ...],
    max_cluster_size: int,
    now: float,
) -> SessionSpec:
    """Return what the call asks for.

    Args:
        body: The call.
        session_id: The new session's id.
        owner: Whose session it is.
        keypair: Who asks.
        depends_on: The dependencies' ids.
        max_cluster_size: Largest gang.
        now: Unix seconds.

    Raises:
        InvalidParameter: a field is wrong; the message names it.
        Forbidden: it takes an administrator.
    """
    config = body.config or SessionConfig()
    _refuse_what_is_not_served(body, config)
    if not 1 <= body.cluster_size <= max_cluster_size:
        raise InvalidParameter(
            f"clusterSize: {body.cluster_size} is not between 1 and {max_cluster_size}", field="clusterSize"
        )
    slots = _slots(config)
    return SessionSpec(
        id=session_id,
        name=parse_session_name(body.name if body.name is not None else f"session-{session_id[:8]}"),
        access_key=owner,
        domain=_own(body.domain, keypair.domain, keypair, "domain"),
        project=_own(body.group, keypair.project, keypair, "group"),
        user=keypair.user,
        type=SessionType(body.type),
        image=parse_image(body.image),
        architecture=_plain_text(body.architecture, "architecture"),
        resource_group=_resource_group(config),
        slots=slots,
        shmem_bytes=_shmem(config, slots),
        cluster_size=body.cluster_size,
        cluster_mode=ClusterMode(body.cluster_mode),
        environ=_environ(config),
        startup_command=_startup_command(body),
        bootstrap_script=_no_nul(body.bootstrap_script, "bootstrap_script"),
        runtime=parse_runtime(body.runtime),
        batch_timeout_s=_limit_s(body.batch_timeout, "batch_timeout"),
        priority=body.priority,
        requeue=body.requeue,
        starts_at=_starts_at(body.starts_at, now),
        depends_on=depends_on,
        dependency_failure=DependencyFailure(body.dependency_failure),
        pending_timeout_s=_limit_s(body.pending_timeout, "pending_timeout"),
        designated_agents=_agents(config, keypair),
        preopen_ports=_ports(config),
        callback_url=_callback_url(body.callback_url),
        tag=_plain_text(body.tag, "tag"),
    )


def span_s(text: str, *, field: str) -> float:
    """Return the seconds of a span such as ``90``, ``30m``, ``2h``, ``1d``.

    Raises:
        InvalidParameter: it is none.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"{field}: {text[:40]!r} is no span of time; give seconds, or '30m', '2h'", field=field)
    return float(match[1]) * _SPAN_UNITS[match[2] or ""]


def _refuse_what_is_not_served(body: CreateSession, config: SessionConfig) -> None:
    if body.type in ("inference", "system"):
        raise InvalidParameter(
            f"type: {body.type!r} sessions are not served; use 'interactive' or 'batch'", field="type"
        )
    if config.mounts or config.mount_map:
        field = "config.mounts" if config.mounts else "config.mount_map"
        raise InvalidParameter(f"{field}: folders come later; leave it empty and upload files instead", field=field)


def _slots(config: SessionConfig) -> ResourceSlots:
    field = "config.resources"
    slots = ResourceSlots.parse({**DEFAULT_RESOURCES, **(config.resources or {})}, field=field)
    for name in DEFAULT_RESOURCES:
        if not slots.amount(name):
            raise InvalidParameter(f"{field}.{name}: must be more than zero", field=f"{field}.{name}")
    return slots


def _shmem(config: SessionConfig, slots: ResourceSlots) -> int:
    given = config.resource_opts.shmem if config.resource_opts else None
    if given is None:
        return min(_DEFAULT_SHMEM, slots.amount(MEM) // 2)
    shmem = parse_amount(MEM, given, field="config.resource_opts.shmem")
    if shmem > slots.amount(MEM):
        raise InvalidParameter(
            "config.resource_opts.shmem: more than the session's memory, of which it is a part",
            field="config.resource_opts.shmem",
        )
    return shmem


def _environ(config: SessionConfig) -> dict[str, str]:
    field = "config.environ"
    environ: dict[str, str] = {}
    for name, value in (config.environ or {}).items():
        text = "" if value is None else str(value)
        if not name or "=" in name or "\0" in name or "\0" in text:
            raise InvalidParameter(f"{field}: {name[:40]!r} cannot be an environment variable", field=field)
        environ[name] = text
    if sum(len(f"{name}={value}".encode()) for name, value in environ.items()) > _MAX_ENVIRON_BYTES:
        raise InvalidParameter(f"{field}: larger than {_MAX_ENVIRON_BYTES} bytes", field=field)
    return environ


def _resource_group(config: SessionConfig) -> ResourceGroupName:
    name = config.scaling_group or "default"
    if not _GROUP.fullmatch(name):
        raise InvalidParameter(f"config.scalingGroup: {name!r} names no group", field="config.scalingGroup")
    return ResourceGroupName(name)


def _ports(config: SessionConfig) -> tuple[int, ...]:
    ports = tuple(dict.fromkeys(config.preopen_ports or ()))
    wrong = next((port for port in ports if not 1 <= port <= 65535), None)
    if wrong is not None:
        raise InvalidParameter(f"config.preopen_ports: {wrong} is no port", field="config.preopen_ports")
    return ports


def _agents(config: SessionConfig, keypair: Keypair) -> tuple[AgentId, ...]:
    if not config.agent_list:
        return ()
    if not keypair.is_admin:
        raise Forbidden("config.agentList: only administrators choose nodes", field="config.agentList")
    return tuple(parse_agent_id(agent, field="config.agentList") for agent in dict.fromkeys(config.agent_list))


def _own(given: str | None, own: str, keypair: Keypair, field: str) -> str:
    if given and given != own and not keypair.is_admin:
        raise Forbidden(f"{field}: {given!r} is not yours; yours is {own!r}", field=field)
    return _plain_text(given, field) or own


def parse_image(text: str) -> str:
    """Return an image's name.

    Raises:
        InvalidParameter: it cannot be one.
    """
    image = text.strip()
    if not _IMAGE.fullmatch(image):
        raise InvalidParameter(f"image: {text[:80]!r} is no image name", field="image")
    return image


def _startup_command(body: CreateSession) -> str:
    command = _no_nul(body.startup_command, "startupCommand")
    if body.type == "batch" and not command.strip():
        raise InvalidParameter("startupCommand: a batch session needs the command to run", field="startupCommand")
    return command


def _limit_s(given: str | float | None, field: str) -> float | None:
    if given is None:
        return None
    seconds = span_s(str(given), field=field)
    if not seconds:
        raise InvalidParameter(f"{field}: must be more than zero", field=field)
    return seconds


def _starts_at(text: str | None, now: float) -> float | None:
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        at = now + span_s(text, field="starts_at")
    else:
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    if not 0 <= at <= now + _FARTHEST_START_S:
        raise InvalidParameter(
            f"starts_at: {text[:40]!r} is before 1970 or more than ten years away", field="starts_at"
        )
    return at


def _callback_url(text: str | None) -> str:
    if not text:
        return ""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable():
        raise InvalidParameter(f"callback_url: {text[:80]!r} is no http(s) URL", field="callback_url")
    return text


def _plain_text(text: str | None, field: str) -> str:
    if text and not text.isprintable():
        raise InvalidParameter(f"{field}: has characters that cannot be printed", field=field)
    return text or ""


def _no_nul(text: str | None, field: str) -> str:
    if text and "\0" in text:
        raise InvalidParameter(f"{field}: has a NUL character", field=field)
    return text or ""

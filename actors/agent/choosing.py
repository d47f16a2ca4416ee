"""Which compute backend a node uses."""

from __future__ import annotations

from collections.abc import Set

import structlog

from actors.agent.backends.base import ComputeBackend, backend_class
from backendai_ray.config import Settings
from backendai_ray.core.errors import EngineUnavailable
from backendai_ray.core.ids import AgentId

log = structlog.get_logger()


def choose_backend(settings: Settings, agent_id: AgentId, before: Set[str] = frozenset()) -> ComputeBackend:
    """Open the configured backend; with ``auto``, docker where an engine answers, else process. Blocks.

    Args:
        settings: Name the backend.
        agent_id: Whose it will be.
        before: What the node's present kernels run in; ``auto`` stays with it.

    Raises:
        EngineUnavailable: the configured one, or the one that kernels run in, cannot be used now.
    """
    wanted = settings.agent.backend
    if wanted != "auto":
        return _open(wanted, settings, agent_id)
    if len(before) == 1:
        return _open(next(iter(before)), settings, agent_id)
    try:
        return _open("docker", settings, agent_id)
    except EngineUnavailable as error:
        log.info("backend.no_engine", why=error.message[:200])
        return _open("process", settings, agent_id)


def _open(name: str, settings: Settings, agent_id: AgentId) -> ComputeBackend:
    backend = backend_class(name)(settings, agent_id)
    backend.open()
    return backend

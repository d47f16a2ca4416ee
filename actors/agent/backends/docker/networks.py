"""Private networks of gangs; single kernels need none, which saves their start a tenth of a second."""

from __future__ import annotations

import threading
from typing import Final

import structlog
from docker.api.client import APIClient
from docker.errors import APIError, NotFound

from actors.agent.backends.docker.containers import LABEL
from backendai_ray.core.ids import SessionId

log = structlog.get_logger()

_MAKING: Final = tuple(threading.Lock() for _ in range(16))
"""The kernels of a gang come at once, and the engine would make each of them a network of the same name."""


def network_name(session_id: SessionId) -> str:
    """Return the name of a gang's network."""
    return f"backendai-ray-{session_id}"


def ensure_network(api: APIClient, session_id: SessionId) -> str:
    """Have a gang's network, also when several kernels, or agents of one engine, come at once; returns its id."""
    with _MAKING[hash(session_id) % len(_MAKING)]:
        return _ensure(api, session_id)


def _ensure(api: APIClient, session_id: SessionId) -> str:
    name = network_name(session_id)
    found = _find(api, name)
    if not found:
        try:
            api.create_network(name, driver="bridge", check_duplicate=True, labels={f"{LABEL}session-id": session_id})
        except APIError as error:
            if error.status_code != 409:
                raise
        found = _find(api, name)
    # The engine's check is not atomic, and two agents may both have made one: all take the oldest, the makers
    # of the others remove theirs.
    for surplus in found[1:]:
        _remove(api, surplus)
    if not found:
        raise NotFound(f"network {name} went away while it was made")
    return found[0]


def remove_network(api: APIClient, session_id: SessionId) -> None:
    """Remove a gang's network if nobody is in it any more."""
    for network_id in _find(api, network_name(session_id)):
        _remove(api, network_id)


def _find(api: APIClient, name: str) -> list[str]:
    rows = [row for row in api.networks(names=[name]) if row["Name"] == name]
    return [row["Id"] for row in sorted(rows, key=lambda row: (row.get("Created", ""), row["Id"]))]


def _remove(api: APIClient, network_id: str) -> None:
    try:
        api.remove_network(network_id)
    except NotFound:
        pass  # another agent of this engine was faster
    except APIError as error:
        if error.status_code not in (403, 409):
            raise
        log.debug("network.still_used", network=network_id)

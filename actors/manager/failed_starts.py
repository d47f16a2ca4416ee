"""On which nodes a start has failed: agents that failed lately come last. Pure."""

from __future__ import annotations

from backendai_ray.core.ids import AgentId
from backendai_ray.core.sessions import STARTING, TERMINAL, Reason, Session, Status

_NODES_FAULT = frozenset({Reason.START_FAILED, Reason.CONTAINER_LOST, Reason.AGENT_LOST})
"""Not the image's, and not the user's."""


def nodes_that_failed(before: Session | None, after: Session) -> list[AgentId]:
    """Return the nodes on which a kernel did not start, each once; empty when this change was no failed start.

    Args:
        before: The record that was replaced.
        after: The one that took its place.
    """
    if before is None or before.status not in STARTING:
        return []
    starting = {k.id: k.agent_id for k in before.kernels if k.status in STARTING and k.agent_id is not None}
    ended = [k for k in after.kernels if k.id in starting and k.status in TERMINAL]
    guilty: set[AgentId] = set()
    if after.status is Status.PENDING and after.reason is Reason.RETRY:
        guilty = set(starting.values())  # the last kernel that was left failed, and what it was is cleared
    elif ended:
        guilty = {starting[k.id] for k in ended if k.status is Status.ERROR and k.reason in _NODES_FAULT}
    elif after.status is Status.TERMINATING and after.reason in (Reason.RETRY, Reason.START_TIMEOUT):
        guilty = set(starting.values())  # their time was up
    return sorted(guilty)

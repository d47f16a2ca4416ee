"""What a session depends on, and what that depends on, as one nested record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from backendai_ray.core.ids import SessionId
from backendai_ray.core.sessions import Session

MAX_NODES = 1000
"""Nodes of one graph; a session that several depend on is a node below each."""
MAX_DEPTH = 64
"""Sessions one below the other: whoever reads it, as nested JSON, must be able to."""


async def dependency_graph(root: Session, find: Callable[[SessionId], Awaitable[Session | None]]) -> dict[str, Any]:
    """Return a session and what it depends on, nested, as the official client reads it.

    A session that several depend on is unfolded once, where whoever reads from the top down meets it first (the
    official client looks at no session twice); elsewhere, and where the graph is larger than is shown, ``depends_on``
    is empty and ``is_complete`` false.

    Args:
        root: The session at the top.
        find: Returns a session by its id, whether it lives or has ended; ``None``: it is not there any more.
    """
    top = _node(root)
    unfolded: set[SessionId] = set()
    shown = 1
    todo = [(root, top, 0)]
    while todo:
        session, node, depth = todo.pop()
        if session.id in unfolded or depth >= MAX_DEPTH:
            continue
        unfolded.add(session.id)
        node["is_complete"] = shown + len(session.spec.depends_on) <= MAX_NODES
        below: list[tuple[Session, dict[str, Any], int]] = []
        for dependency in session.spec.depends_on[: MAX_NODES - shown]:
            found = await find(dependency)
            if found is not None:
                below.append((found, _node(found), depth + 1))
        shown += len(below)
        node["depends_on"] = [child for _, child, _ in below]
        todo.extend(reversed(below))
    return top


def _node(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "session_name": session.spec.name,
        "status": session.status.value,
        "status_changed": session.status_at,
        "result": session.result.value,
        "depends_on": [],
        "is_complete": not session.spec.depends_on,
    }

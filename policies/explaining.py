"""What an explanation says beside the policy's own words: the closest node, and whether what is free is in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from backendai_ray.core.explanations import Explanation, Fragmentation, StartBasis, StartEstimate
from backendai_ray.core.scheduling import NodeRefusal, PendingSession, Placement, Refusal, RefusalCode, Snapshot
from backendai_ray.core.slots import ResourceSlots

from .candidates import Eligible, per_node_slots
from .columns import Room, RoomCache

_FOR_WANT_OF_ROOM = frozenset({RefusalCode.NOT_ENOUGH, RefusalCode.FRAGMENTED, RefusalCode.GANG})

_CLOSENESS = {RefusalCode.FRAGMENTED: 0, RefusalCode.NOT_ENOUGH: 1, RefusalCode.TOO_LARGE: 2}
"""A node that has enough in pieces is closer than one that has too little now, and that one than one too small."""


def explanation_of(
    snapshot: Snapshot, session: PendingSession, outcome: Refusal | Placement, rooms: RoomCache
) -> Explanation:
    """Return an explanation of what a policy said of a session, but for the estimate, which is another question.

    Args:
        snapshot: What was decided on.
        session: One of its pending sessions.
        outcome: What the policy does with it.
        rooms: Keeps what it has of the nodes; for one thread at a time.
    """
    waiting = len(snapshot.pending)
    unknown = StartEstimate(basis=StartBasis.UNKNOWN)
    if isinstance(outcome, Placement):
        return Explanation(outcome=outcome, waiting=waiting, estimate=unknown)
    pieces = Fragmentation.NONE
    if outcome.code in _FOR_WANT_OF_ROOM:
        pieces = fragmentation(rooms.open(snapshot.nodes), session, outcome.nodes)
    if pieces is Fragmentation.ACROSS_NODES:
        outcome = replace(outcome, message=f"{outcome.message}; all nodes together have enough free, none has it alone")
    return Explanation(
        outcome=outcome,
        position=None if outcome.ahead is None else outcome.ahead + 1,
        waiting=waiting,
        closest=closest_node(session, outcome.nodes),
        fragmentation=pieces,
        estimate=unknown,
    )


def closest_node(session: PendingSession, nodes: Sequence[NodeRefusal]) -> NodeRefusal | None:
    """Return the node that lacks least, counted in parts of what is asked; ``None`` when room is not what is missing.

    Args:
        session: The session that waits.
        nodes: Why each node cannot take it.
    """
    asked = per_node_slots(session)
    short = [node for node in nodes if node.code in _CLOSENESS]
    return min(short, key=lambda node: (_CLOSENESS[node.code], _lack(node.shortfall, asked)), default=None)


def _lack(shortfall: ResourceSlots, asked: ResourceSlots) -> float:
    return sum(units / (asked.amount(slot) or units) for slot, units in shortfall.items())


def fragmentation(room: Room, session: PendingSession, nodes: Sequence[NodeRefusal]) -> Fragmentation:
    """Return whether what is free would be enough if it were in one piece.

    Args:
        room: What is free.
        session: A session for which there is no room.
        nodes: Why each node cannot take it.
    """
    if any(node.code is RefusalCode.FRAGMENTED for node in nodes):
        return Fragmentation.WITHIN_NODE
    needs = room.needs(session.slots)
    rows = np.flatnonzero(Eligible.of(room, session).all)
    if not needs or not len(rows):
        return Fragmentation.NONE
    size = len(session.kernel_ids)
    enough = all(int(room.columns.free[rows, column].sum()) >= units * size for column, units in needs)
    return Fragmentation.ACROSS_NODES if enough else Fragmentation.NONE

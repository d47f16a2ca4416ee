"""Why a session was not placed, in words: for the session as a whole, and node by node.

A reason is either *its own* (too large for any node, no such architecture): waiting behind others or letting others
wait would change nothing; or it is the state of the nodes, which passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.ids import KernelId
from backendai_ray.core.scheduling import NodeRefusal, PendingSession, Refusal, RefusalCode
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots

from .candidates import Eligible, per_node_slots
from .columns import Ints, Mask, Room
from .placing import NoRoom

OWN_REASONS = frozenset(
    {
        RefusalCode.NO_NODES,
        RefusalCode.UNSCHEDULABLE,
        RefusalCode.NOT_DESIGNATED,
        RefusalCode.ARCHITECTURE,
        RefusalCode.LABELS,
        RefusalCode.TOO_LARGE,
        RefusalCode.NOT_YET,
        RefusalCode.DEPENDENCIES,
        RefusalCode.QUOTA,
    }
)
"""Reasons for which a session never holds up the ones behind it."""

_NAMED = 3
"""So many names are spelled out in a sentence."""


def not_eligible_yet(session: PendingSession, now: float, still_held: frozenset[KernelId]) -> Refusal | None:
    """Return why a session may not be placed at this moment wherever there is room; ``None`` when it may."""
    if session.starts_at is not None and session.starts_at > now:
        when = datetime.fromtimestamp(session.starts_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Refusal(session.id, RefusalCode.NOT_YET, f"starts at {when}")
    if session.waiting_for:
        sessions = "session" if len(session.waiting_for) == 1 else "sessions"
        message = f"waits for {sessions} {_names(session.waiting_for)}, on which it depends"
        return Refusal(session.id, RefusalCode.DEPENDENCIES, message)
    if not still_held.isdisjoint(session.kernel_ids):
        return Refusal(session.id, RefusalCode.NOT_YET, "its containers of before still hold devices; they end first")
    return None


def why_not_placed(room: Room, session: PendingSession, outcome: NoRoom) -> tuple[RefusalCode, str]:
    """Return the binding reason and its sentence for a session that was tried and did not fit."""
    if not len(room.nodes):
        return RefusalCode.NO_NODES, "the resource group has no node"
    eligible = Eligible.of(room, session)
    excluded = _why_none_is_eligible(room, session, eligible)
    if excluded is not None:
        return excluded
    too_large = _why_too_large(room, session, eligible.all)
    if too_large is not None:
        return _away(room, session, eligible) or (RefusalCode.TOO_LARGE, too_large)
    size = len(session.kernel_ids)
    if size > 1 and outcome.placed:
        where = "on one node" if session.cluster_mode is ClusterMode.SINGLE_NODE else "now"
        message = f"{outcome.placed} of its {size} kernels would fit {where}; a gang starts as a whole or not at all"
        return RefusalCode.GANG, message
    return _closest(room, session, eligible.all)


def _why_none_is_eligible(room: Room, session: PendingSession, eligible: Eligible) -> tuple[RefusalCode, str] | None:
    if not eligible.designated.any():
        return RefusalCode.NOT_DESIGNATED, f"the designated {_names(session.designated_agents)} is not there"
    if not eligible.architecture.any():
        has = _names(sorted({node.architecture for node in room.nodes}))
        return RefusalCode.ARCHITECTURE, f"needs a node of architecture {session.architecture}; the nodes have {has}"
    if not (eligible.designated & eligible.architecture).any():
        message = f"the designated {_names(session.designated_agents)} has not the architecture {session.architecture}"
        return RefusalCode.ARCHITECTURE, message
    if not eligible.labels.any():
        return RefusalCode.LABELS, f"needs a node with the labels {_labels(session)}; no node has them"
    if not eligible.suitable.any():
        return RefusalCode.LABELS, f"no node that it may use has the labels {_labels(session)}"
    if not eligible.all.any():
        node = room.nodes[int(np.flatnonzero(eligible.suitable)[0])]
        message = f"no fitting node takes new sessions; {node.agent_id}: {node.unschedulable}"
        return RefusalCode.UNSCHEDULABLE, message
    return None


def _why_too_large(room: Room, session: PendingSession, allowed: Mask) -> str | None:
    """Return a sentence when the session would not fit on the nodes even if they were empty."""
    size = len(session.kernel_ids)
    together = size > 1 and session.cluster_mode is ClusterMode.MULTI_NODE
    still, best, known = size, 0, dict[int, int]()
    for row in np.flatnonzero(allowed).tolist():
        one = room.map(row)
        # Nodes bought together share their layout; each layout is tried once.
        fits = known.get(id(one.layout))
        if fits is None:
            fits = known[id(one.layout)] = _kernels_that_fit(one, session, still if together else size)
        best = max(best, fits)
        still -= fits
        if best >= size or (together and still <= 0):
            return None
    asked = _words(session.slots)
    if together and best:
        return f"needs {size} kernels of {asked}; all nodes together, empty, take {size - still}"
    if size > 1 and best:
        return f"needs {size} kernels of {asked} on one node; the largest, empty, takes {best}"
    row, short = _least_short(room, per_node_slots(session), allowed, room.columns.capacity)
    if not short:
        return f"needs {asked}; no node has devices of that size"
    return f"needs {asked}; the largest node {room.nodes[row].agent_id} is short by {_words(short)} even when empty"


def _away(room: Room, session: PendingSession, eligible: Eligible) -> tuple[RefusalCode, str] | None:
    """Return why a node takes nothing new now with which the session would fit, if that is what is missing."""
    fitting = eligible.suitable
    if eligible.schedulable.all() or _why_too_large(room, session, fitting) is not None:
        return None
    row = int(np.flatnonzero(fitting & ~eligible.schedulable)[0])
    node = room.nodes[row]
    return RefusalCode.UNSCHEDULABLE, f"the nodes that are left are too small; {node.agent_id}: {node.unschedulable}"


def _kernels_that_fit(one: DeviceMap, session: PendingSession, most: int) -> int:
    empty = one.emptied()
    for number in range(most):
        found = empty.allocate(session.slots)
        if isinstance(found, Shortage):
            return number
        empty.adopt(KernelId(str(number)), found)
    return most


def _closest(room: Room, session: PendingSession, allowed: Mask) -> tuple[RefusalCode, str]:
    slots = per_node_slots(session)
    row, short = _least_short(room, slots, allowed, room.columns.free)
    agent = room.nodes[row].agent_id
    if short:
        return RefusalCode.NOT_ENOUGH, f"needs {_words(slots)}; the closest node {agent} is short by {_words(short)}"
    shortage = room.map(row).allocate(session.slots)
    return RefusalCode.FRAGMENTED, f"needs {_words(slots)}; on the closest node {agent}, {shortage}"


def _least_short(room: Room, slots: ResourceSlots, allowed: Mask, has: Ints) -> tuple[int, ResourceSlots]:
    """Return the allowed row that lacks least, counted in parts of what is asked, and what it lacks."""
    rows = np.flatnonzero(allowed)
    lack = np.zeros(len(rows), dtype=np.float64)
    missing: dict[str, Ints] = {}
    for slot, units in slots.items():
        column = room.columns.column(slot)
        missing[slot] = (
            np.full(len(rows), units, dtype=np.int64) if column is None else np.maximum(0, units - has[rows, column])
        )
        lack += missing[slot] / units
    best = int(lack.argmin())
    return int(rows[best]), ResourceSlots((slot, int(units[best])) for slot, units in missing.items())


def node_refusals(room: Room, session: PendingSession) -> tuple[NodeRefusal, ...]:
    """Return, for every node that cannot take the session (or its next kernel) now, why."""
    eligible = Eligible.of(room, session)
    refusals = (_node_refusal(room, session, row, eligible) for row in range(len(room.nodes)))
    return tuple(refusal for refusal in refusals if refusal is not None)


def _node_refusal(room: Room, session: PendingSession, row: int, eligible: Eligible) -> NodeRefusal | None:
    node = room.nodes[row]
    slots = per_node_slots(session)
    if not eligible.designated[row]:
        return NodeRefusal(node.agent_id, RefusalCode.NOT_DESIGNATED, "is not one of the designated agents")
    if not eligible.architecture[row]:
        message = f"has architecture {node.architecture}, not {session.architecture}"
        return NodeRefusal(node.agent_id, RefusalCode.ARCHITECTURE, message)
    if not eligible.labels[row]:
        return NodeRefusal(node.agent_id, RefusalCode.LABELS, f"has not the labels {_labels(session)}")
    if not eligible.schedulable[row]:
        return NodeRefusal(node.agent_id, RefusalCode.UNSCHEDULABLE, node.unschedulable)
    now = room.map(row)
    if short := slots.shortfall(now.capacity()):
        message = f"has {_words(now.capacity(), like=slots)} in all, short by {_words(short)} even when empty"
        return NodeRefusal(node.agent_id, RefusalCode.TOO_LARGE, message, short)
    if short := now.shortages(slots):
        message = f"has {_words(now.free(), like=slots)} free, short by {_words(short)}"
        return NodeRefusal(node.agent_id, RefusalCode.NOT_ENOUGH, message, short)
    wanted = len(session.kernel_ids) if slots != session.slots else 1
    trial = now.copy()
    for number in range(wanted):
        found = trial.allocate(session.slots)
        if isinstance(found, Shortage):
            short = ResourceSlots([(found.slot, found.short_by)])
            return NodeRefusal(node.agent_id, RefusalCode.FRAGMENTED, str(found), short)
        trial.adopt(KernelId(f"trial {number}"), found)
    return None


def _words(slots: ResourceSlots, *, like: ResourceSlots | None = None) -> str:
    """Return amounts as people read them; with ``like``, of its slots only, zeros too."""
    human = slots.human()
    if like is not None:
        human = {slot: human.get(slot, "0") for slot in like}
    return ", ".join(f"{slot} {amount}" for slot, amount in human.items()) or "nothing"


def _labels(session: PendingSession) -> str:
    return ", ".join(f"{name}={value}" for name, value in session.node_labels)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:_NAMED])
    return shown if len(listed) <= _NAMED else f"{shown} and {len(listed) - _NAMED} more"

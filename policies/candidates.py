"""Which nodes could take a kernel of a request, ranked; kept up to date while a pass places sessions.

Identical requests share one :class:`Candidates`: the second of them costs what has changed since the first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import inf

import numpy as np

from backendai_ray.core.ids import AgentId
from backendai_ray.core.scheduling import AgentSelection, PendingSession
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots

from .columns import Floats, Ints, Mask, Room
from .selection import ColumnSelection, QuickSelection, checked_rank

_AVOIDED = 1e6
"""Added to the score of nodes where an earlier attempt failed: after all others, but before waiting."""
_FEW = 8
"""Up to as many nodes are scored one by one, without numpy's cost per call."""
_RECOMPUTE_ALL = 0.25
"""When more than this part of the nodes changed, scoring all at once is the cheaper way."""


def request_of(session: PendingSession) -> Hashable:
    """Return what identical requests have in common."""
    return (
        session.slots,
        len(session.kernel_ids),
        session.cluster_mode,
        session.architecture,
        session.image,
        session.designated_agents,
        session.avoid_agents,
    )


def per_node_slots(session: PendingSession) -> ResourceSlots:
    """Return what one node must have in all: a gang on a single node needs its sum there."""
    size = len(session.kernel_ids)
    if size > 1 and session.cluster_mode is ClusterMode.SINGLE_NODE:
        return ResourceSlots((slot, units * size) for slot, units in session.slots.items())
    return session.slots


@dataclass(frozen=True, slots=True)
class Eligible:
    """Which nodes may be looked at, by named filters; each is a mask over the rows."""

    schedulable: Mask
    designated: Mask
    architecture: Mask

    @property
    def all(self) -> Mask:
        """The nodes that pass every filter."""
        return self.schedulable & self.designated & self.architecture

    @classmethod
    def of(cls, room: Room, session: PendingSession) -> Eligible:
        """Apply the filters."""
        wanted, only = session.architecture, frozenset(session.designated_agents)
        return cls(
            schedulable=room.mask("schedulable", lambda node: not node.unschedulable),
            designated=room.mask(only, lambda node: not only or node.agent_id in only),
            architecture=room.mask(wanted, lambda node: not wanted or node.architecture == wanted),
        )


class Candidates:
    """The nodes for one kind of request."""

    def __init__(self, room: Room, session: PendingSession, selection: AgentSelection) -> None:
        self.eligible = Eligible.of(room, session)
        self._room = room
        self._session = session
        self._selection = selection
        self._scorer = selection if isinstance(selection, ColumnSelection) else None
        self._quick = selection if isinstance(selection, QuickSelection) else None
        self._needs = room.needs(per_node_slots(session))
        self._allowed = self.eligible.all
        self._avoided = frozenset(session.avoid_agents)
        self._score: Floats = np.full(len(room.nodes), np.inf)
        self._rejected: set[int] = set()
        self._evaluate(np.flatnonzero(self._allowed))
        self._read = len(room.touched)

    def best(self) -> int | None:
        """Return the row to try next; ``None`` when no node has enough in all."""
        self._catch_up()
        if not len(self._score):
            return None
        if self._scorer is None:
            return self._first_ranked()
        row = int(self._score.argmin())
        return None if np.isinf(self._score[row]) else row

    def reject(self, row: int) -> None:
        """Do not return the row again unless it changes: its devices are free only in pieces."""
        self._catch_up()
        self._rejected.add(row)
        self._score[row] = np.inf

    def _catch_up(self) -> None:
        touched = self._room.touched
        if self._read == len(touched):
            return
        rows = set(touched[self._read :])
        self._read = len(touched)
        self._rejected -= rows
        if self._quick is not None and len(rows) <= _FEW:
            self._evaluate_few(rows, self._quick)
        elif len(rows) > _RECOMPUTE_ALL * len(self._score):
            self._evaluate(np.flatnonzero(self._allowed))
            # Two rejected nodes would else bring each other back for ever.
            self._score[list(self._rejected)] = np.inf
        else:
            self._evaluate(np.array([row for row in rows if self._allowed[row]], dtype=np.int64))

    def _evaluate_few(self, rows: Iterable[int], scorer: QuickSelection) -> None:
        needs, columns = self._needs, self._room.columns
        if needs is None:
            return
        allowed, free = self._allowed, columns.free
        fitting = []
        for row in rows:
            if allowed[row]:
                self._score[row] = inf
                if all(free[row, column] >= units for column, units in needs):
                    fitting.append(row)
        if not fitting:
            return
        for row, score in zip(fitting, scorer.scores_of_few(self._session, columns, fitting), strict=True):
            is_avoided = self._avoided and self._room.nodes[row].agent_id in self._avoided
            self._score[row] = score + _AVOIDED if is_avoided else score

    def _evaluate(self, rows: Ints) -> None:
        if self._needs is None or not len(rows):
            return
        columns = self._room.columns
        free = columns.free.take(rows, axis=0)
        fits: Mask = np.ones(len(rows), dtype=np.bool_)
        for column, units in self._needs:
            fits &= free[:, column] >= units
        self._score[rows] = np.inf
        rows = rows[fits]
        if not len(rows):
            return
        self._score[rows] = 0.0 if self._scorer is None else self._scorer.scores(self._session, columns, rows)
        if self._avoided:
            again = [row for row in rows.tolist() if self._room.nodes[row].agent_id in self._avoided]
            self._score[again] += _AVOIDED

    def _first_ranked(self) -> int | None:
        finite = np.flatnonzero(np.isfinite(self._score)).tolist()
        if not finite:
            return None
        row_of: dict[AgentId, int] = {self._room.nodes[row].agent_id: row for row in finite}
        ranked = checked_rank(self._selection, self._session, [self._room.node(row) for row in finite])
        return min((row_of[node.agent_id] for node in ranked), key=lambda row: self._score[row])

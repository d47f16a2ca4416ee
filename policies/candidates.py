"""Which nodes could take a kernel of a request, ranked; kept up to date while a pass places sessions.

Identical requests share one :class:`Candidates`: the second of them costs what has changed since the first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from backendai_ray.core.ids import AgentId
from backendai_ray.core.scheduling import AgentSelection, PendingSession
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots

from .columns import Floats, Ints, Mask, Room
from .preferences import GangShape
from .selection import ColumnSelection, QuickSelection, checked_rank

_AVOIDED = 1e6
"""Added to the score of nodes where an earlier attempt failed: after all others, but before waiting."""
_FAILED = 1e4
"""Added for each start that failed on a node lately: after the others, but before nodes where this session failed."""
_MOST_FAILURES = 9
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
        session.node_labels,
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
    labels: Mask

    @property
    def suitable(self) -> Mask:
        """The nodes that pass every filter but whether they take anything now."""
        return self.designated & self.architecture & self.labels

    @property
    def all(self) -> Mask:
        """The nodes that pass every filter."""
        return self.schedulable & self.suitable

    @classmethod
    def of(cls, room: Room, session: PendingSession) -> Eligible:
        """Apply the filters."""
        wanted, only, labels = session.architecture, frozenset(session.designated_agents), session.node_labels
        return cls(
            schedulable=room.mask("schedulable", lambda node: not node.unschedulable),
            designated=room.mask(only, lambda node: not only or node.agent_id in only),
            architecture=room.mask(wanted, lambda node: not wanted or node.architecture == wanted),
            labels=room.mask(
                ("labels", labels), lambda node: all(node.labels.get(name) == value for name, value in labels)
            ),
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
        self._failures = _failures_of(room)
        self.gangs = GangShape(getattr(selection, "gangs", GangShape.SCORE))
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

    def best_for_gang(self, left: int, used: Sequence[int]) -> int | None:
        """Return the row to try next for a gang over several nodes.

        Args:
            left: How many of its kernels have no place yet.
            used: The rows of those that have, the last one last.
        """
        if self.gangs is GangShape.SCORE or self._scorer is None:
            return self.best()
        self._catch_up()
        usable = np.flatnonzero(self._score < _FAILED)
        if not len(usable):
            return self.best()
        if self.gangs is GangShape.SPREAD:
            fresh = usable[~np.isin(usable, used)]
            rows = fresh if len(fresh) else usable
            return int(rows[self._score[rows].argmin()])
        if used and self._score[used[-1]] < _FAILED:
            return used[-1]
        takes = np.full(len(usable), left, dtype=np.int64)
        for column, units in self._needs or ():
            takes = np.minimum(takes, self._room.columns.free[usable, column] // max(1, units))
        largest = usable[takes == takes.max()]
        return int(largest[self._score[largest].argmin()])

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
            changed = np.fromiter(rows, dtype=np.int64, count=len(rows))
            self._evaluate(changed[self._allowed[changed]])

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
            failures = 0.0 if self._failures is None else float(self._failures[row])
            self._score[row] = score + failures + (_AVOIDED if is_avoided else 0.0)

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
        if self._failures is not None:
            self._score[rows] += self._failures[rows]
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


def _failures_of(room: Room) -> Floats | None:
    """Return what starts that failed lately cost by node; ``None`` when there were none."""
    if not room.mask("failed", lambda node: node.failures > 0).any():
        return None
    return _FAILED * np.array([min(node.failures, _MOST_FAILURES) for node in room.nodes], dtype=np.float64)

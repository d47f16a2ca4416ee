"""Agent selections: which of the nodes that could take a kernel is the best one.

A selection has ``rank``. One that also has ``scores`` is asked for numbers by column instead, which is what makes a
pass over thousands of nodes cheap. One that wants to know what else waits and runs has ``for_pass``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.scheduling import AgentSelection, Node, PendingSession, Snapshot
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

from .columns import Columns, Floats, Ints, Room

Part = TypeVar("Part", float, Floats)

_IDLE_ACCELERATOR = 10.0
"""Weighs more than any fraction: a session that asks for no accelerator goes to nodes without one, if there are."""


@runtime_checkable
class ColumnSelection(Protocol):
    """A selection that scores nodes by column."""

    name: str

    def scores(self, session: PendingSession, columns: Columns, rows: Ints) -> Floats:
        """Return a finite score for each of the rows, between 0 and 1000; the lowest is the best.

        A row's score may depend on that row and on what the session asks for (slots, image, architecture), and on
        nothing else: it is kept for identical requests and made anew only for rows that changed.
        """
        ...


@runtime_checkable
class QuickSelection(ColumnSelection, Protocol):
    """A column selection that has a quicker way to score a handful of nodes, where numpy's cost per call matters."""

    def scores_of_few(self, session: PendingSession, columns: Columns, rows: Sequence[int]) -> Sequence[float]:
        """Return exactly what :meth:`scores` returns for the rows."""
        ...


@runtime_checkable
class InformedSelection(Protocol):
    """A selection that decides by the whole snapshot."""

    name: str

    def for_pass(self, room: Room, snapshot: Snapshot) -> AgentSelection:
        """Return what ranks, or scores, the nodes during one pass over the snapshot.

        Args:
            room: The room of the pass, which changes while the pass goes on; it must not be changed by the selection.
            snapshot: The world that is decided on.
        """
        ...


def for_pass(selection: AgentSelection, room: Room, snapshot: Snapshot) -> AgentSelection:
    """Return the selection to use in one pass: policies call this at the beginning of each."""
    return selection.for_pass(room, snapshot) if isinstance(selection, InformedSelection) else selection


class _ByUse:
    """What concentrated and dispersed have in common."""

    name = ""

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first."""
        columns = Columns.of([DeviceMap(node.devices, node.held) for node in candidates])
        scores = self.scores(session, columns, np.arange(len(candidates)))
        return [candidates[row] for row in np.argsort(scores, kind="stable")]

    def scores(self, session: PendingSession, columns: Columns, rows: Ints) -> Floats:
        """Return a score for each of the rows; the lowest is the best."""
        scores: Floats = np.zeros(len(rows), dtype=np.float64)
        asked = 0
        for column, slot in enumerate(columns.slots):
            capacity = columns.capacity[rows, column]
            if slot in session.slots:
                scores += self._use(columns.free[rows, column] / np.maximum(capacity, 1))
                asked += 1
            elif slot not in (CPU, MEM):
                scores += _IDLE_ACCELERATOR * (capacity > 0) * max(1, len(session.slots))
        return scores / max(1, asked)

    def scores_of_few(self, session: PendingSession, columns: Columns, rows: Sequence[int]) -> Sequence[float]:
        """Return what :meth:`scores` returns, for a handful of rows."""
        return [self._score(session.slots, columns, row) for row in rows]

    def _score(self, slots: ResourceSlots, columns: Columns, row: int) -> float:
        score, asked = 0.0, 0
        of_slot = zip(columns.slots, columns.free[row].tolist(), columns.capacity[row].tolist(), strict=True)
        for slot, free, capacity in of_slot:
            if slot in slots:
                score += self._use(free / max(capacity, 1))
                asked += 1
            elif capacity and slot not in (CPU, MEM):
                score += _IDLE_ACCELERATOR * max(1, len(slots))
        return score / max(1, asked)

    def _use(self, free: Part) -> Part:
        raise NotImplementedError


class Concentrated(_ByUse):
    """Fills the fullest node first, so that large sessions find empty ones."""

    name = "concentrated"

    def _use(self, free: Part) -> Part:
        return free


class Dispersed(_ByUse):
    """Takes the emptiest node first, so that sessions share as little as possible."""

    name = "dispersed"

    def _use(self, free: Part) -> Part:
        return 1.0 - free


def checked_rank(selection: AgentSelection, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
    """Return what the selection ranks, or say that it does not keep its promise.

    Raises:
        ValueError: it lost, doubled or invented a node.
    """
    ranked = selection.rank(session, candidates)
    if sorted(node.agent_id for node in ranked) != sorted(node.agent_id for node in candidates):
        raise ValueError(f"agent selection {selection.name} did not return the candidates it was given")
    return ranked

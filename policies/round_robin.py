"""Agents in turn: the one that was given nothing for the longest time is next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backendai_ray.core.scheduling import AgentSelection, Node, PendingSession, Snapshot

from .columns import Columns, Floats, Ints, Room
from .preferences import Preferences


class RoundRobin:
    """Takes the node that was given something longest ago; those on which nothing runs first, by their id.

    The turn is read off the snapshot (when what runs was placed), so that it survives restarts and the same snapshot
    gives the same plan; of what has ended nothing is remembered.
    """

    name = "round-robin"

    def __init__(self, **preferences: Any) -> None:
        """Make the selection.

        Args:
            preferences: See :class:`.preferences.Preferences`.
        """
        self._preferences = Preferences(**preferences)
        self.gangs = self._preferences.gangs

    def for_pass(self, room: Room, snapshot: Snapshot) -> AgentSelection:
        """Return the selection that knows whose turn it is."""
        return self._preferences.in_pass(RoundRobinInPass(room, snapshot, self.gangs), room, snapshot)

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, those with the fewest kernels first: when they were placed is not known here."""
        return sorted(candidates, key=lambda node: (len(node.held), node.agent_id))


class RoundRobinInPass:
    """The turn during one pass."""

    name = RoundRobin.name

    def __init__(self, room: Room, snapshot: Snapshot, gangs: str) -> None:
        self.gangs = gangs
        self._room = room
        last: dict[str, float] = {}
        for kernel in snapshot.running:
            last[kernel.agent_id] = max(kernel.placed_at, last.get(kernel.agent_id, -np.inf))
        order = sorted(
            range(len(room.nodes)),
            key=lambda row: (last.get(room.nodes[row].agent_id, -np.inf), room.nodes[row].agent_id),
        )
        self._turn = np.zeros(len(room.nodes))
        self._turn[order] = np.arange(len(order))
        self._read = len(room.touched)

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first."""
        self._catch_up()
        turn_of = {node.agent_id: turn for node, turn in zip(self._room.nodes, self._turn.tolist(), strict=True)}
        return sorted(candidates, key=lambda node: turn_of.get(node.agent_id, 0.0))

    def scores(self, session: PendingSession, columns: Columns, rows: Ints) -> Floats:
        """Return a score for each of the rows; the lowest is the best."""
        self._catch_up()
        turns = self._turn[rows]
        result: Floats = turns / (turns + len(self._turn) + 1.0)
        return result

    def _catch_up(self) -> None:
        """A node that was given something goes to the end."""
        touched = self._room.touched
        for number in range(self._read, len(touched)):
            self._turn[touched[number]] = len(self._turn) + number
        self._read = len(touched)

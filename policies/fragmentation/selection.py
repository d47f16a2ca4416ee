"""The agent selection ``fragmentation``: a kernel goes where the least of what others could use is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.scheduling import Node, PendingSession, Snapshot
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots, SlotName
from policies.candidates import per_node_slots
from policies.columns import Columns, Floats, Ints, Mask, Room, RoomCache
from policies.selection import Concentrated

from .worth import Mix, Shape, Stock, most_frequent, reach_of

_Request = tuple[ResourceSlots, str, frozenset[AgentId]]
"""What one node must give, of which architecture, and on which agents alone (empty: any)."""

_PRECISION = 4
"""Decimals of a loss, in devices, that count; what is equal to them goes to the fuller node."""
_TIE = 1e-3


class Fragmentation:
    """Places a kernel where it costs the least of what the expected requests could use.

    What is expected is what waits and what runs: in a pass, all of the snapshot; in a bare :meth:`rank`, the session
    itself and what runs on the candidates. Sessions that ask for no accelerator are placed by the same measure, so
    they leave cores free where accelerators need them.
    """

    name = "fragmentation"

    def for_pass(self, room: Room, snapshot: Snapshot) -> FragmentationInPass:
        """Return the selection that knows one pass: its nodes and its mix of requests."""
        return FragmentationInPass(room, _mix_of(snapshot.pending, (one.allocation for one in snapshot.running)))

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first."""
        room = RoomCache().open(candidates)
        held = (allocation for node in candidates for allocation in node.held.values())
        scorer = FragmentationInPass(room, _mix_of([session], held))
        scores = scorer.scores(session, room.columns, np.arange(len(candidates)))
        return [candidates[row] for row in np.argsort(scores, kind="stable")]


class FragmentationInPass:
    """The selection during one pass; it follows what the pass places."""

    name = Fragmentation.name

    def __init__(self, room: Room, mix: Mapping[_Request, int]) -> None:
        """Lay out the accelerators of the room's nodes.

        Args:
            room: What is free; it is read and never changed.
            mix: How often each request is expected.
        """
        self._room = room
        self._among_equals = Concentrated()
        self._read = len(room.touched)
        self._asked: Counter[str] = Counter()
        for request, count in mix.items():
            for slot, units in request[0].items():
                self._asked[slot] += units * count
        self._stocks: dict[SlotName, Stock] = {}
        self._shapes: dict[SessionId, Sequence[tuple[Stock, Shape]]] = {}
        for slot in room.columns.slots:
            asking = {request: count for request, count in mix.items() if slot in request[0]}
            if slot not in (CPU, MEM) and asking:
                self._stocks[SlotName(slot)] = self._stock_of(SlotName(slot), asking)

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first."""
        return Fragmentation().rank(session, candidates)

    def scores(self, session: PendingSession, columns: Columns, rows: Ints) -> Floats:
        """Return a score for each of the rows; the lowest is the best."""
        lost = self._lost(session, rows)
        scores: Floats = 500 + 400 * lost / (1 + np.abs(lost))
        return scores + _TIE * self._among_equals.scores(session, columns, rows)

    def scores_of_few(self, session: PendingSession, columns: Columns, rows: Sequence[int]) -> Sequence[float]:
        """Return what :meth:`scores` returns, for a handful of rows."""
        lost = self._lost(session, np.array(rows, dtype=np.int64)).tolist()
        among_equals = self._among_equals.scores_of_few(session, columns, rows)
        return [500 + 400 * a / (1 + abs(a)) + _TIE * b for a, b in zip(lost, among_equals, strict=True)]

    def _lost(self, session: PendingSession, rows: Ints) -> Floats:
        """Return what placing the session on each of the rows costs, in devices.

        A score made of it is between 100 and 900, in the order of the losses.
        """
        self._catch_up()
        lost: Floats = np.zeros(len(rows), dtype=np.float64)
        for stock, shape in self._shapes_of(session):
            lost += stock.loss(shape, rows)
        return lost.round(_PRECISION)

    def _shapes_of(self, session: PendingSession) -> Sequence[tuple[Stock, Shape]]:
        shapes = self._shapes.get(session.id)
        if shapes is None:
            slots = per_node_slots(session)
            shapes = [(stock, _shape(slots, slot)) for slot, stock in self._stocks.items()]
            self._shapes[session.id] = shapes
        return shapes

    def _stock_of(self, slot: SlotName, asking: Mapping[_Request, int]) -> Stock:
        room = self._room
        by_node = [room.map(row).free_of_each(slot) for row in range(len(room.nodes))]
        free = np.zeros((len(by_node), max(map(len, by_node))), dtype=np.int64)
        for row, units in enumerate(by_node):
            free[row, : len(units)] = units
        frequent = most_frequent(asking)
        access = np.array([self._could_take(request) for request, _ in frequent], dtype=np.bool_).T
        mix = Mix(
            tuple(_shape(request[0], slot) for request, _ in frequent),
            tuple(share for _, share in frequent),
            reach_of(self._demand(slot), self._demand(CPU), self._demand(MEM)),
        )
        devices = np.array([len(units) for units in by_node], dtype=np.int64)
        return Stock(self._free_of(CPU), self._free_of(MEM), free, devices, mix, access)

    def _demand(self, slot: SlotName) -> float:
        """Return what all expected requests ask for of a slot, over what there is."""
        columns = self._room.columns
        column = columns.column(slot)
        return 0.0 if column is None else self._asked[slot] / max(1, int(columns.capacity[:, column].sum()))

    def _free_of(self, slot: SlotName) -> Ints:
        columns = self._room.columns
        column = columns.column(slot)
        return np.zeros(len(self._room.nodes), dtype=np.int64) if column is None else columns.free[:, column]

    def _could_take(self, request: _Request) -> Mask:
        """Return which nodes could take a request if they were empty."""
        slots, wanted, only = request
        room = self._room
        could = room.mask("schedulable", lambda node: not node.unschedulable)
        could = could & room.mask(wanted, lambda node: not wanted or node.architecture == wanted)
        could &= room.mask(only, lambda node: not only or node.agent_id in only)
        needs = room.needs(slots)
        if needs is None:
            return np.zeros_like(could)
        for column, units in needs:
            could &= room.columns.capacity[:, column] >= units
        return could

    def _catch_up(self) -> None:
        touched = self._room.touched
        if self._read == len(touched):
            return
        for row in dict.fromkeys(touched[self._read :]):
            devices = self._room.map(row)
            for slot, stock in self._stocks.items():
                stock.changed(row, devices.free_units(CPU), devices.free_units(MEM), devices.free_of_each(slot))
        self._read = len(touched)


def _mix_of(pending: Iterable[PendingSession], held: Iterable[Allocation]) -> Counter[_Request]:
    mix: Counter[_Request] = Counter()
    for session in pending:
        times = 1 if session.cluster_mode is ClusterMode.SINGLE_NODE else len(session.kernel_ids)
        mix[per_node_slots(session), session.architecture, frozenset(session.designated_agents)] += times
    for allocation in held:
        mix[allocation.slots(), "", frozenset()] += 1
    return mix


def _shape(slots: ResourceSlots, slot: SlotName) -> Shape:
    """Return what a request takes of one kind of accelerator and beside it; above one device, in even parts."""
    units = slots.amount(slot)
    count = -(-units // UNITS_PER_COUNT)
    return Shape(slots.amount(CPU), slots.amount(MEM), count, units // max(1, count))

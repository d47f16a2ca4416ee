"""The reservation in time of the session at the head of the queue: when there will be room for it, and what may go
ahead meanwhile without making it wait any longer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.scheduling import Node, PendingSession, Placement
from backendai_ray.core.sessions import ClusterMode

from .candidates import Candidates, Eligible, per_node_slots, request_of
from .columns import Room, RoomCache
from .placing import place
from .selection import Concentrated

_RANKED = Concentrated()
"""In the future only whether a session fits is of interest, and a gang's kernels fit in any order or not at all."""


class Ending:
    """A kernel that holds devices, and when its session must have ended."""

    __slots__ = ("agent_id", "at", "kernel_id")

    def __init__(self, kernel_id: KernelId, agent_id: AgentId, at: float) -> None:
        self.kernel_id, self.agent_id, self.at = kernel_id, agent_id, at


class Reservation:
    """The head's: from :attr:`at` on it has a place, if every session keeps its limit.

    Where it will be is left open, so that what goes ahead is turned away only if there is no place left for the head
    at all.
    """

    def __init__(self, head: PendingSession, at: float, now: float, future: Room) -> None:
        """Reserve.

        Args:
            head: The session at the head of the queue.
            at: When there is room for it, Unix seconds.
            now: When what goes ahead would start, Unix seconds.
            future: The room at that time, of the same nodes in the same order as the room now; it is taken over.
        """
        self.at = at
        self._now = now
        self._head = head
        self._future = future
        self._candidates = Candidates(future, head, _RANKED)
        self._row = {node.agent_id: row for row, node in enumerate(future.nodes)}
        self._in_the_way: set[Hashable] = set()
        self._place: frozenset[int] = frozenset()
        """The rows of one place where it fits, as things stand."""
        self._still_fits()

    def ends_before(self, session: PendingSession) -> bool:
        """Return whether a session that starts now has ended when the head's time comes."""
        return session.time_limit_s is not None and self._now + session.time_limit_s <= self.at

    def is_in_the_way(self, session: PendingSession) -> bool:
        """Return whether a session need not be tried: one that asks for the same was turned away before."""
        # Room in the future only shrinks while a pass goes on.
        return not self.ends_before(session) and request_of(session) in self._in_the_way

    def admits(self, session: PendingSession, placement: Placement) -> bool:
        """Return whether a session may start now at that place; if so, it is taken into account from here on."""
        if self.ends_before(session):
            return True
        before = self._future.mark()
        rows = self.rows_of(placement)
        for row, kernel in zip(rows, placement.kernels, strict=True):
            self._future.hold(row, kernel.kernel_id, kernel.allocation)
        # Elsewhere than where the head would go, it takes nothing from it.
        if self._place.isdisjoint(rows) or self._still_fits():
            return True
        self._future.undo_to(before)
        return False

    def rows_of(self, placement: Placement) -> list[int]:
        """Return the row of each kernel's node."""
        return [self._row[kernel.agent_id] for kernel in placement.kernels]

    def put_in_the_way(self, session: PendingSession) -> None:
        """Take note that sessions that ask for the same need not be tried any more."""
        self._in_the_way.add(request_of(session))

    def _still_fits(self) -> bool:
        """Return whether there is a place for the head in the future, and remember it."""
        mark = self._future.mark()
        found = place(self._future, self._candidates, self._head)
        self._future.undo_to(mark)
        if not isinstance(found, Placement):
            return False
        self._place = frozenset(self._row[kernel.agent_id] for kernel in found.kernels)
        return True


class Forecast:
    """Finds when there will be room for a session, as sessions reach their limits one after the other."""

    def __init__(self) -> None:
        self._rooms = RoomCache()

    def reservation(
        self, head: PendingSession, room: Room, endings: Iterable[Ending], now: float
    ) -> Reservation | None:
        """Return the head's reservation; ``None`` when there may never be room for it.

        Args:
            head: A session for which there is no room now.
            room: What is free now.
            endings: The kernels that have a limit, those placed in this pass included.
            now: Unix seconds.
        """
        nodes = [room.node(row) for row in range(len(room.nodes))]
        coming = sorted(endings, key=lambda ending: (ending.at, ending.kernel_id))
        if len(head.kernel_ids) == 1 or head.cluster_mode is ClusterMode.SINGLE_NODE:
            at = _first_on_one_node(head, room, coming)
        else:
            at = self._first_on_many_nodes(head, nodes, coming)
        return None if at is None else Reservation(head, at, now, self._room_at(nodes, coming, at))

    def _first_on_many_nodes(
        self, head: PendingSession, nodes: Sequence[Node], coming: Sequence[Ending]
    ) -> float | None:
        times = sorted({ending.at for ending in coming})
        low, high = 0, len(times)
        # The more has ended the more is free, so the first time at which it fits is found by halving.
        while low < high:
            middle = (low + high) // 2
            if self._fits(head, self._room_at(nodes, coming, times[middle])):
                high = middle
            else:
                low = middle + 1
        return None if low == len(times) else times[low]

    def _room_at(self, nodes: Sequence[Node], coming: Iterable[Ending], at: float) -> Room:
        gone: dict[AgentId, set[KernelId]] = {}
        for ending in coming:
            if ending.at > at:
                break
            gone.setdefault(ending.agent_id, set()).add(ending.kernel_id)
        return self._rooms.open([_without(node, gone.get(node.agent_id, set())) for node in nodes])

    @staticmethod
    def _fits(head: PendingSession, room: Room) -> bool:
        return isinstance(place(room, Candidates(room, head, _RANKED), head), Placement)


def _first_on_one_node(head: PendingSession, room: Room, coming: Iterable[Ending]) -> float | None:
    """Return when all kernels of the head first fit on one node, which is a matter of that node's endings alone."""
    allowed = Eligible.of(room, head).all
    row_of = {node.agent_id: row for row, node in enumerate(room.nodes)}
    maps: dict[int, DeviceMap] = {}
    needed = per_node_slots(head)
    for ending in coming:
        row = row_of[ending.agent_id]
        if not allowed[row]:
            continue
        devices = maps.get(row)
        if devices is None:
            devices = maps[row] = room.map(row).copy()
        devices.release(ending.kernel_id)
        is_enough = all(units <= devices.free_units(slot) for slot, units in needed.items())
        if is_enough and _takes_all(devices, head):
            return ending.at
    return None


def _takes_all(devices: DeviceMap, head: PendingSession) -> bool:
    if len(head.kernel_ids) == 1:
        return devices.fits(head.slots)
    trial = devices.copy()
    for kernel_id in head.kernel_ids:
        found = trial.allocate(head.slots)
        if isinstance(found, Shortage):
            return False
        trial.hold(kernel_id, found)
    return True


def _without(node: Node, gone: set[KernelId]) -> Node:
    if not gone:
        return node
    return replace(node, held={name: held for name, held in node.held.items() if name not in gone})

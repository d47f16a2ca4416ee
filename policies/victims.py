"""The cheapest sessions to end so that there is room for another one; verified with the allocator itself.

*Cheapest*: of two sets, the one whose most important session is less important; among those the one with fewer of that
importance, and so on down the priorities; then the one that loses less work (the part of the resource group that it
holds, times the time for which it has held it). No set that is returned has a session that is not needed.

On a node with few sessions all sets are compared; with more, sessions are taken from the cheapest on until there is
room, and then those are given back that turn out not to be needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from backendai_ray.core.allocator import Shortage
from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession
from backendai_ray.core.sessions import ClusterMode

from .candidates import per_node_slots
from .columns import Room

EXACT = 8
"""With up to so many sessions on a node (or, for a gang over several nodes, in all) every set of them is compared."""
MOST_NODES = 64
"""So many nodes that could be cleared are looked at, those first that look cheapest by their totals."""

Cost = tuple[tuple[int, ...], float, tuple[SessionId, ...]]


@dataclass(frozen=True, slots=True)
class Victim:
    """A session that may be ended."""

    session_id: SessionId
    priority: int
    lost: float
    """What ending it wastes: part of the resource group times seconds."""
    rows: Mapping[int, tuple[KernelId, ...]]
    """Its kernels by the row of their node."""


def cost_of(victims: Iterable[Victim]) -> Cost:
    """Return what ending these costs; the least is the best."""
    victims = list(victims)
    priorities = tuple(sorted((victim.priority for victim in victims), reverse=True))
    return priorities, sum(victim.lost for victim in victims), tuple(sorted(victim.session_id for victim in victims))


class Search:
    """Looks for the cheapest victims for one session in one room."""

    def __init__(self, room: Room, session: PendingSession, rows: Sequence[int], victims: Iterable[Victim]) -> None:
        """Prepare.

        Args:
            room: What is free, and what the victims hold; not changed.
            session: Needs room, and finds none as things are.
            rows: The nodes that it may use.
            victims: The sessions that may be ended for it.
        """
        allowed = set(rows)
        self._room = room
        self._slots = session.slots
        self._size = len(session.kernel_ids)
        self._together = self._size == 1 or session.cluster_mode is ClusterMode.SINGLE_NODE
        self._per_node = per_node_slots(session) if self._together else session.slots
        self._rows = rows
        useful = [victim for victim in victims if not allowed.isdisjoint(victim.rows)]
        self._victims = sorted(useful, key=lambda victim: cost_of([victim]))
        self._counts: dict[tuple[int, frozenset[SessionId]], int] = {}

    def cheapest(self) -> tuple[Victim, ...] | None:
        """Return the victims, cheapest first; ``None``: ending all of them would not help."""
        if self._together:
            return self._on_one_node()
        return self._cheapest_of(self._victims, self._worth_a_look())

    def _worth_a_look(self) -> list[int]:
        """Return the nodes that have enough by their totals, or victims."""
        needs = self._room.needs(self._slots)
        if needs is None:
            return []
        free = self._room.columns.free
        held = {row for victim in self._victims for row in victim.rows}
        return [row for row in self._rows if row in held or all(free[row, column] >= n for column, n in needs)]

    def _on_one_node(self) -> tuple[Victim, ...] | None:
        here: dict[int, list[Victim]] = {}
        allowed = set(self._rows)
        for victim in self._victims:
            for row in allowed.intersection(victim.rows):
                here.setdefault(row, []).append(victim)
        best: tuple[Victim, ...] | None = None
        looked_at = 0
        for guess, row in sorted((self._guess(row, here[row]), row) for row in here):
            if guess[0]:
                break  # the rest cannot be cleared
            found = self._cheapest_of(here[row], [row], best)
            looked_at += found is not None
            if found is not None and (best is None or cost_of(found) < cost_of(best)):
                best = found
            if looked_at >= MOST_NODES:
                break
        return best

    def _guess(self, row: int, victims: Sequence[Victim]) -> tuple[bool, tuple[int, ...], float]:
        """Return about what clearing a node costs, by totals alone; nodes that cannot be cleared come last."""
        one = self._room.map(row)
        short = {slot: units - one.free_units(slot) for slot, units in self._per_node.items()}
        taken: list[Victim] = []
        for victim in victims:
            if all(units <= 0 for units in short.values()):
                break
            taken.append(victim)
            for kernel_id in victim.rows[row]:
                for slot, units in one.held[kernel_id].slots().items():
                    if slot in short:
                        short[slot] -= units
        priorities, lost, _ = cost_of(taken)
        return any(units > 0 for units in short.values()), priorities, lost

    # ── one set of nodes ──────────────────────────────────────────────────────────────────────────────────────────

    def _cheapest_of(
        self, victims: Sequence[Victim], rows: Sequence[int], better_than: Sequence[Victim] | None = None
    ) -> tuple[Victim, ...] | None:
        """Return the cheapest of some victims that make room on some nodes; ``None``: all of them would not.

        With ``better_than`` the search ends where nothing cheaper is left, and returns what costs at least as much.
        """
        if not self._fits(victims, rows):
            return None
        if len(victims) > EXACT:
            return self._greedily(victims, rows)
        limit = cost_of(better_than) if better_than is not None else None
        for cost, chosen in sorted(_subsets(victims), key=lambda one: one[0]):
            if limit is not None and cost >= limit:
                return tuple(victims)
            if self._fits(chosen, rows):
                return chosen
        return tuple(victims)

    def _greedily(self, victims: Sequence[Victim], rows: Sequence[int]) -> tuple[Victim, ...]:
        low, high = 1, len(victims)
        while low < high:  # the more are ended, the more fits
            middle = (low + high) // 2
            if self._fits(victims[:middle], rows):
                high = middle
            else:
                low = middle + 1
        chosen = list(victims[:low])
        for victim in reversed(victims[:low]):
            without = [other for other in chosen if other is not victim]
            if self._fits(without, rows):
                chosen = without
        return tuple(chosen)

    def _fits(self, gone: Iterable[Victim], rows: Sequence[int]) -> bool:
        gone_here: dict[int, set[SessionId]] = {}
        kernels: dict[int, list[KernelId]] = {}
        for victim in gone:
            for row, names in victim.rows.items():
                gone_here.setdefault(row, set()).add(victim.session_id)
                kernels.setdefault(row, []).extend(names)
        still = self._size
        for row in rows:
            still -= self._count(row, frozenset(gone_here.get(row, ())), kernels.get(row, ()))
            if still <= 0:
                return True
        return False

    def _count(self, row: int, gone: frozenset[SessionId], kernels: Sequence[KernelId]) -> int:
        """Return how many kernels of the session fit on a node once some sessions are gone."""
        known = self._counts.get((row, gone))
        if known is not None:
            return known
        one = self._room.map(row).copy()
        for kernel_id in kernels:
            one.release(kernel_id)
        count = 0
        while count < self._size:
            found = one.allocate(self._slots)
            if isinstance(found, Shortage):
                break
            one.adopt(KernelId(f"trial {count}"), found)
            count += 1
        self._counts[row, gone] = count
        return count


def _subsets(victims: Sequence[Victim]) -> Iterator[tuple[Cost, tuple[Victim, ...]]]:
    for size in range(1, len(victims) + 1):
        for chosen in combinations(victims, size):
            yield cost_of(chosen), chosen

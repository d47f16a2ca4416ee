"""The cheapest sessions to end so that there is room for another one; verified with the allocator itself.

*Cheapest*: of two sets, the one whose most important session is less important; among those the one with fewer of that
importance, and so on down the priorities; then the one that loses less work (the part of the resource group that it
holds, times the time for which it has held it). No set that is returned has a session that is not needed.

On a node with few sessions all sets are compared; with more, sessions are taken from the cheapest on until there is
room, and then those are given back that turn out not to be needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from backendai_ray.core.allocator import Shortage
from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession
from backendai_ray.core.sessions import ClusterMode

from .candidates import per_node_slots
from .columns import Floats, Ints, Mask, Room

EXACT = 8
"""With up to so many sessions on a node (or, for a gang over several nodes, in all) every set of them is compared."""
MOST_NODES = 32
"""So many nodes that can be cleared are looked at, those first that look cheapest by their totals."""

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


def kernels_of(victims: Iterable[Victim]) -> list[tuple[int, KernelId]]:
    """Return the kernels of some victims, each with the row of its node."""
    return [(row, name) for victim in victims for row, names in victim.rows.items() for name in names]


class VictimTable:
    """Sessions that run in a room, as columns: a line for each session and each node that it is on.

    The lines of a node follow each other, the cheapest session first.
    """

    def __init__(self, room: Room, victims: Iterable[Victim]) -> None:
        """Lay the sessions out; ``room`` is the one that they run in."""
        self.victims = sorted(victims, key=lambda victim: (victim.priority, victim.lost, victim.session_id))
        lines = sorted((row, number) for number, victim in enumerate(self.victims) for row in victim.rows)
        self.row: Ints = np.array([row for row, _ in lines], dtype=np.int64)
        self.number: Ints = np.array([number for _, number in lines], dtype=np.int64)
        self.priority: Ints = np.array([self.victims[number].priority for _, number in lines], dtype=np.int64)
        self.lost: Floats = np.array([self.victims[number].lost for _, number in lines], dtype=np.float64)
        self.held: Ints = np.zeros((len(lines), len(room.columns.slots)), dtype=np.int64)
        """Units of each slot of the room's columns."""
        column = {slot: index for index, slot in enumerate(room.columns.slots)}
        for line, (row, number) in enumerate(lines):
            held = room.map(row).held
            for kernel_id in self.victims[number].rows[row]:
                for slot, _, units in held[kernel_id].parts:
                    if slot in column:
                        self.held[line, column[slot]] += units

    def lines_of(self, eligible: Sequence[bool], rows: Mask) -> Ints:
        """Return the lines of some sessions (said by their number) on some nodes."""
        if not len(self.row):
            return self.row
        return np.flatnonzero(np.array(eligible, dtype=np.bool_)[self.number] & rows[self.row])


class Search:
    """Looks for the cheapest victims for one session in one room."""

    def __init__(self, room: Room, session: PendingSession, rows: Mask, table: VictimTable, lines: Ints) -> None:
        """Prepare.

        Args:
            room: What is free, and what the victims hold; not changed.
            session: Needs room, and finds none as things are.
            rows: The nodes that it may use.
            table: What runs, in a room of the same nodes.
            lines: The lines of those that may be ended for it, on nodes that it may use.
        """
        self._room = room
        self._slots = session.slots
        self._size = len(session.kernel_ids)
        self._together = self._size == 1 or session.cluster_mode is ClusterMode.SINGLE_NODE
        self._needs = room.needs(per_node_slots(session) if self._together else session.slots)
        self._rows = rows
        self._table = table
        self._lines = lines
        self._counts: dict[tuple[int, frozenset[SessionId]], int] = {}

    def cheapest(self) -> tuple[Victim, ...] | None:
        """Return the victims, cheapest first; ``None``: ending all of them would not help."""
        if self._needs is None or not len(self._lines):
            return None
        if self._together:
            return self._on_one_node()
        numbers = sorted(set(self._table.number[self._lines].tolist()))
        if len(numbers) > EXACT:
            return self._node_by_node()
        return self._cheapest_of([self._table.victims[number] for number in numbers], self._worth_a_look())

    def groups(self, most: int) -> Iterator[tuple[list[Victim], Sequence[int]]]:
        """Return victims that belong together, and the nodes that are cleared by ending some of them.

        For a session that needs one node: those on that node, of ``most`` nodes at most. For a gang over several nodes
        they are one group, those on the nodes that are cleared at the least cost.
        """
        if self._needs is None or not len(self._lines):
            return
        numbers: dict[int, None] = {}
        for row, _, here in islice(self._by_guess(), most):
            if self._together:
                yield [self._table.victims[number] for number in here], [row]
            numbers.update(dict.fromkeys(here))
        if not self._together:
            yield [self._table.victims[number] for number in numbers], self._worth_a_look()

    def _worth_a_look(self) -> list[int]:
        """Return the nodes that have enough for a kernel by their totals, or victims."""
        worth = self._rows.copy()
        for column, units in self._needs or ():
            worth &= self._room.columns.free[:, column] >= units
        worth[self._table.row[self._lines]] = True
        found: list[int] = np.flatnonzero(worth).tolist()
        return found

    def _on_one_node(self) -> tuple[Victim, ...] | None:
        best: tuple[Victim, ...] | None = None
        looked_at = 0
        for row, priority, numbers in self._by_guess():
            if looked_at >= MOST_NODES or (best is not None and priority > best[-1].priority):
                break  # by totals alone, what follows takes a more important session
            victims = [self._table.victims[number] for number in numbers]
            found = self._cheapest_of(victims, [row], best)
            if found is not None:
                looked_at += 1
                best = found if best is None or cost_of(found) < cost_of(best) else best
        return best

    def _by_guess(self) -> Iterator[tuple[int, int, list[int]]]:
        """Return the nodes that can be cleared by their totals, those first that look cheapest.

        With each comes the priority that has to be gone up to, and the numbers of its victims. By totals, a node is
        cleared by its cheapest sessions up to the first one with which everything that is asked for is there.
        """
        lines, table = self._lines, self._table
        row = table.row[lines]
        starts = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))
        ends = np.append(starts[1:], len(lines))
        enough: Mask = np.ones(len(lines), dtype=np.bool_)
        for column, units in self._needs or ():
            enough &= self._room.columns.free[row, column] + _sums(table.held[lines, column], starts) >= units
        place: Ints = np.where(enough, np.arange(len(lines)), len(lines))
        first: Ints = np.minimum.reduceat(place, starts)
        possible = np.flatnonzero(first < len(lines))
        last = first[possible]
        lost = _sums(table.lost[lines], starts)[last]
        count = last - starts[possible]
        order = np.lexsort((row[last], lost, count, table.priority[lines][last]))
        for which in possible[order].tolist():
            numbers = table.number[lines[starts[which] : ends[which]]].tolist()
            yield int(row[starts[which]]), int(table.priority[lines[first[which]]]), numbers

    # ── a gang over many nodes ────────────────────────────────────────────────────────────────────────────────────

    def _node_by_node(self) -> tuple[Victim, ...] | None:
        """Make room for one kernel after the other, on the node that looks cheapest; then spare who is not needed."""
        gone = _Gone()
        counts = {row: self._count(row, (), ()) for row in self._worth_a_look()}
        have = sum(counts.values())
        guesses = [(row, [self._table.victims[n] for n in numbers]) for row, _, numbers in self._by_guess()]
        while have < self._size:
            before = have
            for row, victims in guesses:
                for victim in self._for_one_more(row, [v for v in victims if v not in gone], gone, counts[row] + 1):
                    gone.add(victim)
                    have += self._recount(victim, gone, counts)
                if have >= self._size:
                    break
            if have == before:
                return None
        for victim in sorted(gone.victims(), key=lambda one: cost_of([one]), reverse=True):
            gone.discard(victim)
            lost = self._recount(victim, gone, counts)
            if have + lost >= self._size:
                have += lost
            else:
                gone.add(victim)
                self._recount(victim, gone, counts)
        return tuple(sorted(gone.victims(), key=lambda one: cost_of([one])))

    def _for_one_more(self, row: int, victims: Sequence[Victim], gone: _Gone, target: int) -> list[Victim]:
        """Return the first so many sessions whose end makes ``target`` kernels fit on a node; none: it is in vain."""
        names, kernels = gone.on(row)
        names = set(names)
        for number, victim in enumerate(victims, 1):
            names.add(victim.session_id)
            kernels = [*kernels, *victim.rows[row]]
            if self._count(row, names, kernels) >= target:
                return list(victims[:number])
        return []

    def _recount(self, victim: Victim, gone: _Gone, counts: dict[int, int]) -> int:
        """Count again where a session is; returns how many kernels more fit."""
        more = 0
        for row in victim.rows:
            if row in counts:
                now = self._count(row, *gone.on(row))
                more += now - counts[row]
                counts[row] = now
        return more

    # ── one set of nodes ──────────────────────────────────────────────────────────────────────────────────────────

    def _cheapest_of(
        self, victims: Sequence[Victim], rows: Sequence[int], better_than: Sequence[Victim] | None = None
    ) -> tuple[Victim, ...] | None:
        """Return the cheapest of some victims (cheapest first) that make room on some nodes; ``None``: all do not.

        With ``better_than`` the search ends where nothing cheaper is left, and returns what costs at least as much.
        """
        if not self.fits(victims, rows):
            return None
        for level in sorted({victim.priority for victim in victims}):
            low = [victim for victim in victims if victim.priority <= level]
            if len(low) < len(victims) and self.fits(low, rows):
                victims = low
                break
        if len(victims) > EXACT:
            return self._greedily(victims, rows)
        limit = cost_of(better_than) if better_than is not None else None
        for cost, chosen in sorted(_subsets(victims), key=lambda one: one[0]):
            if limit is not None and cost >= limit:
                break
            if self.fits(chosen, rows):
                return chosen
        return tuple(victims)

    def _greedily(self, victims: Sequence[Victim], rows: Sequence[int]) -> tuple[Victim, ...]:
        low, high = 1, len(victims)
        while low < high:  # the more are ended, the more fits
            middle = (low + high) // 2
            if self.fits(victims[:middle], rows):
                high = middle
            else:
                low = middle + 1
        chosen = list(victims[:low])
        for victim in reversed(victims[:low]):
            without = [other for other in chosen if other is not victim]
            if self.fits(without, rows):
                chosen = without
        return tuple(chosen)

    def fits(self, gone: Iterable[Victim], rows: Sequence[int]) -> bool:
        """Return whether there is room for the session on some nodes once some victims are gone."""
        gone_here: dict[int, set[SessionId]] = {}
        kernels: dict[int, list[KernelId]] = {}
        for victim in gone:
            for row, names in victim.rows.items():
                gone_here.setdefault(row, set()).add(victim.session_id)
                kernels.setdefault(row, []).extend(names)
        still = self._size
        for row in rows:
            still -= self._count(row, gone_here.get(row, ()), kernels.get(row, ()))
            if still <= 0:
                return True
        return False

    def _count(self, row: int, gone: Collection[SessionId], kernels: Sequence[KernelId]) -> int:
        """Return how many kernels of the session fit on a node once some sessions are gone."""
        key = row, frozenset(gone)
        known = self._counts.get(key)
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
        self._counts[key] = count
        return count


class _Gone:
    """Sessions that are to be ended, by the nodes that they are on."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[SessionId, Victim]] = {}

    def add(self, victim: Victim) -> None:
        for row in victim.rows:
            self._rows.setdefault(row, {})[victim.session_id] = victim

    def discard(self, victim: Victim) -> None:
        for row in victim.rows:
            del self._rows[row][victim.session_id]

    def __contains__(self, victim: Victim) -> bool:
        return any(victim.session_id in self._rows.get(row, ()) for row in victim.rows)

    def on(self, row: int) -> tuple[Collection[SessionId], list[KernelId]]:
        """Return the sessions on a node and their kernels there."""
        here = self._rows.get(row, {})
        return here.keys(), [kernel for victim in here.values() for kernel in victim.rows[row]]

    def victims(self) -> list[Victim]:
        return list({name: victim for here in self._rows.values() for name, victim in here.items()}.values())


def _sums(values: Ints | Floats, starts: Ints) -> Ints | Floats:
    """Return running sums that start anew at each of some places."""
    sums = np.cumsum(values)
    before = np.concatenate(([0], sums[starts[1:] - 1]))
    lengths = np.diff(np.append(starts, len(values)))
    fresh: Ints | Floats = sums - np.repeat(before, lengths)
    return fresh


def _subsets(victims: Sequence[Victim]) -> Iterator[tuple[Cost, tuple[Victim, ...]]]:
    for size in range(1, len(victims) + 1):
        for chosen in combinations(victims, size):
            yield cost_of(chosen), chosen

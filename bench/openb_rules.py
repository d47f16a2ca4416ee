"""The rules that take part: Random, BestFit and FGD as published, and our ``fragmentation``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.openb_replay import Floats, Ints, Rule, World
from bench.openb_trace import Task
from policies.fragmentation.worth import Mix, Shape, Stock, most_frequent, reach_of
from policies.simulator.openb import MILLI

_LARGEST_CPU, _LARGEST_GPU = 128 * MILLI, 8 * MILLI
"""What published BestFit takes for the largest node."""
_TYPICAL = 0.95
"""FGD's typical tasks are this part of all."""
_GROWN = 1.25
"""The mix is counted again when so many times as many tasks have arrived."""


class Random:
    """Any node on which the task fits, and any of its GPUs that suffices."""

    keeps = False

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._draw = world, np.random.default_rng([seed, 1])

    def arrives(self, task: Task) -> bool:
        """Nothing is learnt."""
        return False

    def scores(self, task: Task, rows: Ints) -> Floats:
        """Return a lot for each node."""
        return self._draw.random(len(rows))

    def devices(self, task: Task, row: int) -> Sequence[int]:
        """Return any GPUs that suffice."""
        enough = np.flatnonzero(self._world.free[row] >= task.units)
        return [int(device) for device in self._draw.permutation(enough)[: task.gpus]]

    def placed(self, row: int) -> None:
        """Nothing is kept."""


class BestFit:
    """The node that has the least left, cores and GPUs weighing the same."""

    keeps = True

    def __init__(self, world: World, seed: int) -> None:
        self._world = world

    def arrives(self, task: Task) -> bool:
        """Nothing is learnt."""
        return False

    def scores(self, task: Task, rows: Ints) -> Floats:
        """Return the published score, an integer up to 100."""
        cpu = (self._world.cpu[rows] - task.cpu) / _LARGEST_CPU
        gpu = (self._world.free[rows].sum(axis=1) - task.gpu_milli) / _LARGEST_GPU
        score: Floats = np.trunc(100 * (1 - (cpu + gpu) / 2))
        return score

    def devices(self, task: Task, row: int) -> Sequence[int]:
        """Return the tightest GPUs."""
        return self._world.tightest(row, task)

    def placed(self, row: int) -> None:
        """Nothing is kept."""


class Fgd:
    """Fragmentation gradient descent as published: it knows the distribution of the whole trace beforehand.

    A node's fragmentation is what of its free GPUs a typical task cannot use, on average over the typical tasks. The
    score is ``int(100 * sigmoid(decrease / 1000))``; the GPU of a fraction is chosen by it as well.
    """

    keeps = True

    def __init__(self, world: World, trace: Sequence[Task]) -> None:
        self._world = world
        counts = Counter(task._replace(mem=0) for task in trace)
        typical: list[tuple[Task, int]] = []
        covered = 0
        for task, count in sorted(counts.items(), key=lambda item: (-item[1], item[0][:4], sorted(item[0].models))):
            if covered >= _TYPICAL * len(trace):
                break
            typical.append((task, count))
            covered += count
        with_gpu = [(task, count / covered) for task, count in typical if task.gpus]
        self._share = np.array([share for _, share in with_gpu], dtype=np.float64)
        self._cpu = np.array([task.cpu for task, _ in with_gpu], dtype=np.int64)
        self._count = np.array([task.gpus for task, _ in with_gpu], dtype=np.int64)
        sizes = sorted({task.units for task, _ in with_gpu} or {MILLI})
        self._size = np.array([sizes.index(task.units) for task, _ in with_gpu], dtype=np.int64)
        left = np.arange(MILLI + 1)[:, None]
        self._suffices = (left >= np.array(sizes)).astype(np.int64)
        """Per free units of a GPU and size of a task."""
        self._useless = left * (1 - self._suffices)
        accepted = [world.accepts(task) for task, _ in with_gpu]
        self._accepted: NDArray[np.bool_] = np.array(accepted, dtype=np.bool_).reshape(len(with_gpu), -1).T.copy()
        self._devices: dict[Task, Ints] = {}

    def arrives(self, task: Task) -> bool:
        """It knows already."""
        return False

    def scores(self, task: Task, rows: Ints) -> Floats:
        """Return the published score."""
        free, cpu = self._world.free[rows], self._world.cpu[rows]
        enough, useless = self._suffices[free].sum(axis=1), self._useless[free].sum(axis=1)
        total = free.sum(axis=1)
        before = self._fragmented(rows, cpu, enough, useless, total)
        cpu = cpu - task.cpu
        if not task.gpus or task.units == MILLI:
            enough = enough - task.gpus * self._suffices[MILLI]
            return _graded(before - self._fragmented(rows, cpu, enough, useless, total - task.gpu_milli))
        # One line for every node and GPU that suffices, but for GPUs with as much left as an earlier one.
        candidate = free >= task.units
        for device in range(1, free.shape[1]):
            candidate[:, device] &= (free[:, :device] != free[:, device, None]).all(axis=1)
        line, device_of = np.nonzero(candidate)
        old = free[line, device_of]
        new = old - task.units
        after = self._fragmented(
            rows[line],
            cpu[line],
            enough[line] - self._suffices[old] + self._suffices[new],
            useless[line] - self._useless[old] + self._useless[new],
            total[line] - task.units,
        )
        graded = np.full(free.shape, -1.0)
        graded[line, device_of] = _graded(before[line] - after)
        chosen = self._devices.setdefault(task, np.zeros(self._world.size, dtype=np.int64))
        chosen[rows] = graded.argmax(axis=1)
        best: Floats = graded.max(axis=1)
        return best

    def _fragmented(self, rows: Ints, cpu: Ints, enough: Ints, useless: Ints, total: Ints) -> Floats:
        possible = enough[:, self._size] >= self._count
        possible &= cpu[:, None] >= self._cpu
        possible &= self._accepted[rows]
        usable = possible * (total[:, None] - useless[:, self._size])
        fragmented: Floats = total - usable @ self._share
        return fragmented

    def devices(self, task: Task, row: int) -> Sequence[int]:
        """Return the GPU that the score was for; whole ones in order."""
        if task.gpus and task.units < MILLI:
            return [int(self._devices[task][row])]
        return self._world.tightest(row, task)

    def placed(self, row: int) -> None:
        """Scores are made from the world itself."""


def _graded(decrease: Floats) -> Floats:
    grade: Floats = np.trunc(100 / (1 + np.exp(-decrease / MILLI)))
    return grade


class Fragmentation:
    """The agent selection ``fragmentation``, scored by the code of the live system.

    It knows no distribution beforehand: its mix is the tasks that have arrived so far.
    """

    keeps = True

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: Counter[Task] = Counter()
        self._arrived = self._recount_at = 0
        self._there = np.array([world.free.sum(), world.cpu.sum(), world.mem.sum()])
        self._asked = np.zeros(3)
        self._stock: Stock | None = None

    def arrives(self, task: Task) -> bool:
        """Count the task; expect what has come so far, counted again when it has grown by a quarter."""
        self._asked += (task.gpu_milli, task.cpu, task.mem)
        if not task.gpus:
            return False
        self._seen[task] += 1
        self._arrived += 1
        if self._arrived < self._recount_at:
            return False
        self._recount_at = int(self._arrived * _GROWN) + 1
        frequent = most_frequent(self._seen)
        shapes, share = tuple(_shape(kind) for kind, _ in frequent), tuple(share for _, share in frequent)
        mix = Mix(shapes, share, reach_of(*(self._asked / self._there).tolist()))
        world = self._world
        access = np.array([world.accepts(kind) for kind, _ in frequent], dtype=np.bool_).T
        if self._stock is None:
            self._stock = Stock(world.cpu, world.mem, world.free, (world.free > 0).sum(axis=1), mix, access)
        else:
            self._stock.expect(mix, access)
        return True

    def scores(self, task: Task, rows: Ints) -> Floats:
        """Return what a placement costs, as a negative number."""
        if self._stock is None:
            return np.zeros(len(rows))
        return -self._stock.loss(_shape(task), rows).astype(np.float64)

    def devices(self, task: Task, row: int) -> Sequence[int]:
        """Return the tightest GPUs, as the allocator does."""
        return self._world.tightest(row, task)

    def placed(self, row: int) -> None:
        """Tell the stock."""
        if self._stock is not None:
            world = self._world
            self._stock.changed(row, int(world.cpu[row]), int(world.mem[row]), world.free[row])


def _shape(task: Task) -> Shape:
    return Shape(task.cpu, task.mem, task.gpus, task.units)


RULES: dict[str, Callable[[World, Sequence[Task], int], Rule]] = {
    "random": lambda world, trace, seed: Random(world, seed),
    "bestfit": lambda world, trace, seed: BestFit(world, seed),
    "fgd": lambda world, trace, seed: Fgd(world, trace),
    "fragmentation": lambda world, trace, seed: Fragmentation(world),
}
"""By the name in the figures: made from the world, the whole trace (only FGD looks at it) and a seed."""

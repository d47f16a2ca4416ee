"""Replaying arrivals on a cluster: one task at a time, no departures, each tried once.

A rule scores the nodes on which a task fits; the highest score is taken, the first node among equals. Scores are kept
per kind of task and made anew only for nodes that have changed, which is what makes a replay take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.openb_trace import ARRIVED_PCT, Cluster, Task

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NEVER = -np.inf


class World:
    """The nodes as they stand."""

    def __init__(self, cluster: Cluster) -> None:
        self.cpu, self.mem, self.free = cluster.cpu.copy(), cluster.mem.copy(), cluster.gpus.copy()
        self.models = cluster.models
        self.size = len(self.cpu)
        self._accepts: dict[frozenset[str], Mask] = {}

    def accepts(self, task: Task) -> Mask:
        """Return on which nodes a task may be at all, by their GPU models."""
        mask = self._accepts.get(task.models)
        if mask is None:
            mask = np.array([not task.models or model in task.models for model in self.models], dtype=np.bool_)
            self._accepts[task.models] = mask
        return mask

    def fitting(self, task: Task, rows: Ints) -> Ints:
        """Return on which of the rows a task fits."""
        fits = self.accepts(task)[rows] & (self.cpu[rows] >= task.cpu) & (self.mem[rows] >= task.mem)
        rows = rows[fits]
        if task.gpus:
            rows = rows[(self.free[rows] >= task.units).sum(axis=1) >= task.gpus]
        return rows

    def tightest(self, row: int, task: Task) -> list[int]:
        """Return the devices of a node that suffice and have the least left."""
        free = self.free[row]
        enough = np.flatnonzero(free >= task.units)
        return [int(device) for device in enough[np.argsort(free[enough], kind="stable")][: task.gpus]]

    def place(self, row: int, task: Task, devices: Sequence[int]) -> None:
        """Take what a task asks for."""
        self.cpu[row] -= task.cpu
        self.mem[row] -= task.mem
        for device in devices:
            self.free[row, device] -= task.units


class Rule(Protocol):
    """Decides where a task goes."""

    keeps: bool
    """Whether a score holds until the node, or what the rule expects, changes."""

    def arrives(self, task: Task) -> bool:
        """Take note of a task; return whether all scores so far have become void."""
        ...

    def scores(self, task: Task, rows: Ints) -> Floats:
        """Return a finite score for nodes on which the task fits; the highest wins."""
        ...

    def devices(self, task: Task, row: int) -> Sequence[int]:
        """Return which GPUs of the chosen node the task gets."""
        ...

    def placed(self, row: int) -> None:
        """Take note that a node has changed."""
        ...


class _Scores:
    """The scores of one kind of task, and how far they have followed the changes."""

    def __init__(self, size: int) -> None:
        self.values = np.full(size, _NEVER)
        self.read = -1


def replay(world: World, rule: Rule, tasks: Sequence[Task], gpu_milli: int) -> Floats:
    """Place tasks in the order of their arrival.

    Returns:
        The part of all GPUs that is allocated, in percent, when GPU demand has reached each percent of them.
    """
    allocated = np.zeros(ARRIVED_PCT + 1)
    arrived = used = 0
    reached = -1
    kept: dict[Task, _Scores] = {}
    changed: list[int] = []
    everyone = np.arange(world.size)
    for task in tasks:
        if rule.arrives(task):
            kept.clear()
            changed.clear()
        scores = kept.get(task)
        if scores is None:
            scores = kept[task] = _Scores(world.size)
        if scores.read < 0 or not rule.keeps or len(changed) - scores.read > world.size:
            _evaluate(world, rule, task, scores, everyone)
        elif scores.read < len(changed):
            rows = np.fromiter(set(changed[scores.read :]), dtype=np.int64)
            _evaluate(world, rule, task, scores, rows)
        scores.read = len(changed)
        row = int(scores.values.argmax())
        if scores.values[row] > _NEVER:
            world.place(row, task, rule.devices(task, row))
            rule.placed(row)
            changed.append(row)
            used += task.gpu_milli
        arrived += task.gpu_milli
        percent = min(ARRIVED_PCT, 100 * arrived // gpu_milli)
        allocated[reached + 1 : percent + 1] = 100 * used / gpu_milli
        reached = max(reached, percent)
    return allocated


def _evaluate(world: World, rule: Rule, task: Task, scores: _Scores, rows: Ints) -> None:
    scores.values[rows] = _NEVER
    rows = world.fitting(task, rows)
    if len(rows):
        scores.values[rows] = rule.scores(task, rows)

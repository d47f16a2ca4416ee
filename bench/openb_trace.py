"""The openb traces as the published protocol takes them: what tasks ask for, as columns and in order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backendai_ray.core.errors import InvalidParameter
from policies.simulator.openb import MILLI, openb_nodes, openb_tasks

ARRIVED_PCT = 130
"""Tasks arrive until their GPUs are this part of what the cluster has."""

_MOST_ARRIVALS = 1_000_000


class Task(NamedTuple):
    """What a task asks for; tasks that are equal are the same to every rule."""

    cpu: int
    """Thousandths of a core."""
    mem: int
    """MiB."""
    gpus: int
    """How many GPUs."""
    units: int
    """Thousandths of each of them; zero when it asks for none."""
    models: frozenset[str]
    """The GPU models it accepts; empty: any."""

    @property
    def gpu_milli(self) -> int:
        """What it asks for in all, thousandths of a GPU."""
        return self.gpus * self.units


@dataclass(frozen=True, slots=True)
class Cluster:
    """Empty nodes, as columns."""

    cpu: NDArray[np.int64]
    mem: NDArray[np.int64]
    gpus: NDArray[np.int64]
    """Thousandths by node and device; nodes with fewer devices than others have zeros."""
    models: tuple[str, ...]

    @property
    def gpu_milli(self) -> int:
        """All GPUs together, in thousandths."""
        return int(self.gpus.sum())

    def in_order(self, order: Sequence[int] | NDArray[np.int64]) -> Cluster:
        """Return the same nodes in another order, which is what decides between equal scores."""
        rows = np.asarray(order)
        return Cluster(self.cpu[rows], self.mem[rows], self.gpus[rows], tuple(self.models[row] for row in rows))


def read_nodes(path: Path) -> Cluster:
    """Read a node list; nodes without GPUs take no part in the protocol and are left out.

    Raises:
        InvalidParameter: the file cannot be read, or a line is not of the format.
    """
    nodes = [node for _, node in openb_nodes(str(path), _lines(path)) if node.gpus]
    if not nodes:
        raise InvalidParameter(f"{path}: no node has a GPU", field="nodes")
    width = max(node.gpus for node in nodes)
    free = np.array([[MILLI] * node.gpus + [0] * (width - node.gpus) for node in nodes], dtype=np.int64)
    cpus = np.array([node.cpu_milli for node in nodes], dtype=np.int64)
    mems = np.array([node.memory_mib for node in nodes], dtype=np.int64)
    return Cluster(cpus, mems, free, tuple(node.model for node in nodes))


def read_tasks(path: Path) -> list[Task]:
    """Read a trace.

    Raises:
        InvalidParameter: the file cannot be read, a line is not of the format, or no task asks for a GPU.
    """
    tasks = [
        Task(task.cpu_milli, task.memory_mib, task.gpus, task.milli_each, frozenset(task.models))
        for _, task in openb_tasks(str(path), _lines(path))
    ]
    if not any(task.gpus for task in tasks):
        raise InvalidParameter(
            f"{path}: no task asks for a GPU, so GPU demand never reaches {ARRIVED_PCT} %", field="trace"
        )
    return tasks


def trace_name(path: Path) -> str:
    """Return the short name of a trace, as the figures have it: ``default`` for ``openb_pod_list_default.csv``."""
    return path.stem.removeprefix("openb_pod_list_") or path.stem


def arrivals(tasks: Sequence[Task], gpu_milli: int, seed: int) -> list[Task]:
    """Return tasks in the order of their arrival, until GPU demand reaches :data:`ARRIVED_PCT`.

    First every task of the trace once, shuffled; then tasks drawn from it with replacement.

    Raises:
        InvalidParameter: the tasks ask for so little that it would take millions of them.
    """
    draw = np.random.default_rng(seed)
    goal, demand = gpu_milli * ARRIVED_PCT / 100, 0
    needed = goal * len(tasks) / max(1, sum(task.gpu_milli for task in tasks))
    if needed > _MOST_ARRIVALS:
        raise InvalidParameter(
            f"the trace asks for so few GPUs that {needed:.0f} tasks would have to arrive on these nodes", field="trace"
        )
    arriving: list[Task] = []
    shuffled = draw.permutation(len(tasks))
    while demand < goal:
        for index in shuffled.tolist():
            arriving.append(tasks[index])
            demand += tasks[index].gpu_milli
            if demand >= goal:
                break
        shuffled = draw.integers(len(tasks), size=len(tasks))
    return arriving


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{path}: cannot be read: {error}", field="file") from error

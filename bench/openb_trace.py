"""Reading node lists and traces of the openb format, and the order in which a trace's tasks arrive.

The format: nodes ``sn,cpu_milli,memory_mib,gpu,model``; tasks ``name,cpu_milli,memory_mib,num_gpu,gpu_milli`` and,
optionally, ``gpu_spec`` (models the task accepts, separated by ``|``; empty: any). Further columns are not looked at.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MILLI = 1000
ARRIVED_PCT = 130
"""Tasks arrive until their GPUs are this part of what the cluster has."""

_NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_TASK_COLUMNS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_MOST = 2**40
_MOST_ARRIVALS = 1_000_000


class TraceError(ValueError):
    """A file is not what the format says; the message names the file, the line and the field."""


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
        TraceError: the file cannot be read, or a line is not of the format.
    """
    rows = _rows(path, _NODE_COLUMNS)
    names: set[str] = set()
    kept: list[tuple[int, int, int, str]] = []
    for line, row in rows:
        if not row["sn"] or row["sn"] in names:
            raise TraceError(f"{path}, line {line}: sn: {row['sn']!r} is empty or there twice")
        names.add(row["sn"])
        cpu, mem, gpus = (_number(path, line, row, column) for column in _NODE_COLUMNS[1:4])
        if gpus > 1024:
            raise TraceError(f"{path}, line {line}: gpu: {gpus} GPUs in one node are more than any has")
        if gpus:
            kept.append((cpu, mem, gpus, row["model"]))
    if not kept:
        raise TraceError(f"{path}: no node has a GPU")
    width = max(gpus for _, _, gpus, _ in kept)
    free = np.array([[MILLI] * gpus + [0] * (width - gpus) for _, _, gpus, _ in kept], dtype=np.int64)
    cpus, mems = (np.array([node[column] for node in kept], dtype=np.int64) for column in (0, 1))
    return Cluster(cpus, mems, free, tuple(model for *_, model in kept))


def read_tasks(path: Path) -> list[Task]:
    """Read a trace.

    Raises:
        TraceError: the file cannot be read, a line is not of the format, or no task asks for a GPU.
    """
    tasks: list[Task] = []
    for line, row in _rows(path, _TASK_COLUMNS):
        cpu, mem, count, units = (_number(path, line, row, column) for column in _TASK_COLUMNS)
        if count and not 1 <= units <= MILLI:
            raise TraceError(f"{path}, line {line}: gpu_milli: {units} is not between 1 and {MILLI}")
        models = frozenset(model for model in (row.get("gpu_spec") or "").split("|") if model)
        # The protocol gives tasks with several GPUs whole ones.
        size = 0 if not count else units if count == 1 else MILLI
        tasks.append(Task(cpu, mem, count, size, models if count else frozenset()))
    if not any(task.gpus for task in tasks):
        raise TraceError(f"{path}: no task asks for a GPU, so GPU demand never reaches {ARRIVED_PCT} %")
    return tasks


def trace_name(path: Path) -> str:
    """Return the short name of a trace, as the figures have it: ``default`` for ``openb_pod_list_default.csv``."""
    return path.stem.removeprefix("openb_pod_list_") or path.stem


def arrivals(tasks: Sequence[Task], gpu_milli: int, seed: int) -> list[Task]:
    """Return tasks in the order of their arrival, until GPU demand reaches :data:`ARRIVED_PCT`.

    First every task of the trace once, shuffled; then tasks drawn from it with replacement.

    Raises:
        TraceError: the tasks ask for so little that it would take millions of them.
    """
    draw = np.random.default_rng(seed)
    goal, demand = gpu_milli * ARRIVED_PCT / 100, 0
    needed = goal * len(tasks) / max(1, sum(task.gpu_milli for task in tasks))
    if needed > _MOST_ARRIVALS:
        raise TraceError(f"the trace asks for so few GPUs that {needed:.0f} tasks would have to arrive on these nodes")
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


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(f"{path}: the header lacks {', '.join(missing)}; it needs {', '.join(columns)}")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise TraceError(f"{path}: has a header and nothing else")
    return rows


def _number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    text = row[column]
    try:
        number = int(float(text))
        if number == float(text) and 0 <= number < _MOST:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise TraceError(f"{path}, line {line}: {column}: {text!r} is no whole number of 0 or more")

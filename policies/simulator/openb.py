"""The openb format, for whoever reads it: the simulator, and the bench of the published protocol.

Nodes: CSV with ``sn,cpu_milli,memory_mib,gpu,model``. Tasks: CSV with ``cpu_milli,memory_mib,num_gpu,gpu_milli`` and,
optionally, ``gpu_spec`` (models the task accepts, separated by ``|``; empty: any). Further columns are left to the
caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from backendai_ray.core.errors import InvalidParameter

from .reading import Line, csv_lines, header

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
TASK_COLUMNS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
MILLI = 1000
_MOST_GPUS = 1024


class OpenbNode(NamedTuple):
    """One node."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


class OpenbTask(NamedTuple):
    """What one task asks for."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    milli_each: int
    """Thousandths of each GPU; zero when it asks for none."""
    models: tuple[str, ...]
    """The GPU models it accepts; empty: any."""


def openb_nodes(file: str, lines: list[str]) -> Iterator[tuple[Line, OpenbNode]]:
    """Read a node list; names are unique.

    Raises:
        InvalidParameter: it is not of the format; the message names the file, the line and the field.
    """
    names: set[str] = set()
    for line in _lines(file, lines, NODE_COLUMNS):
        gpus = line.whole("gpu")
        if gpus > _MOST_GPUS:
            raise line.error("gpu", f"{gpus} GPUs in one node are more than any has")
        name = line.text("sn")
        if name in names:
            raise line.error("sn", f"node {name} is there twice")
        names.add(name)
        yield line, OpenbNode(name, line.whole("cpu_milli"), line.whole("memory_mib"), gpus, line.text("model", ""))


def openb_tasks(file: str, lines: list[str]) -> Iterator[tuple[Line, OpenbTask]]:
    """Read a trace.

    Raises:
        InvalidParameter: it is not of the format; the message names the file, the line and the field.
    """
    for line in _lines(file, lines, TASK_COLUMNS):
        gpus, each = line.whole("num_gpu"), line.whole("gpu_milli")
        if gpus and not 1 <= each <= MILLI:
            raise line.error("gpu_milli", f"{each} is not between 1 and {MILLI}")
        models = tuple(model for model in line.text("gpu_spec", "").split("|") if model) if gpus else ()
        # The protocol gives tasks with several GPUs whole ones.
        milli = 0 if not gpus else each if gpus == 1 else MILLI
        yield line, OpenbTask(line.whole("cpu_milli"), line.whole("memory_mib"), gpus, milli, models)


def _lines(file: str, lines: list[str], columns: Iterable[str]) -> Iterator[Line]:
    missing = set(columns) - set(header(lines))
    if missing:
        lacks, needs = ", ".join(c for c in columns if c in missing), ", ".join(columns)
        raise InvalidParameter(f"{file}, line 1: the header lacks {lacks}; it needs {needs}", field="header")
    return csv_lines(file, lines)

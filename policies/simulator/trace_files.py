"""Traces: the openb format, the Philly format, and our own JSON lines.

- openb: CSV with ``name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time`` and, optionally,
  ``gpu_spec`` (models, separated by ``|``) and ``scheduled_time``; times in seconds. GPUs are ``cuda.shares``.
- Philly: CSV with ``timestamp,duration,num_gpus,cluster``; ``2017-10-09 07:01:55``, seconds, whole GPUs, and the
  virtual cluster, which is owner and project. A job of more GPUs than the largest node has is a gang over several.
- Ours: an object a line, ``{"name": "j1", "submitted_at": 0, "duration": 60, "slots": {"cpu": 1, "mem": "1g"}}`` and,
  optionally, ``cluster_size``, ``cluster_mode``, ``owner``, ``project``, ``domain``, ``priority``, ``time_limit``.

Neither openb nor Philly has time limits; the time a job really ran is taken for its limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId
from backendai_ray.core.scheduling import Node
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots

from .jobs import Job, make_job
from .node_files import MODEL, SHARES
from .openb import TASK_COLUMNS, OpenbTask, openb_tasks
from .reading import Line, csv_lines, header, is_json, json_lines
from .world import measured_slot

_OPENB = ("name", *TASK_COLUMNS, "creation_time", "deletion_time")
_PHILLY = ("timestamp", "duration", "num_gpus", "cluster")
_OURS = frozenset(
    {
        "name",
        "submitted_at",
        "duration",
        "slots",
        "cluster_size",
        "cluster_mode",
        "owner",
        "project",
        "domain",
        "priority",
        "time_limit",
    }
)
_MIB = 2**20
_MOST_KERNELS = 10_000


def read_trace(file: str, text: Iterable[str], nodes: Sequence[Node]) -> list[Job]:
    """Read a trace, for a cluster of these nodes.

    Args:
        file: Its name, for errors.
        text: Its lines.
        nodes: The cluster: what a GPU is called there, how many a node has, which nodes have which model.

    Raises:
        InvalidParameter: it is of no known format; the message names the file, the line and the field.
    """
    lines = list(text)
    columns = set() if is_json(lines) else set(header(lines))
    if is_json(lines):
        jobs = [_ours(line) for line in json_lines(file, lines, _OURS)]
    elif set(_OPENB) <= columns:
        models = _Models(nodes)
        jobs = [_openb(line, task, models) for line, task in openb_tasks(file, lines)]
    elif set(_PHILLY) <= columns:
        cluster = _Accelerators(file, nodes)
        jobs = [_philly(line, index, cluster) for index, line in enumerate(csv_lines(file, lines))]
    else:
        known = f"{', '.join(_OPENB)} (openb); {', '.join(_PHILLY)} (Philly); or JSON lines"
        raise InvalidParameter(f"{file}, line 1: the header is not that of a trace; expected {known}", field="trace")
    if not jobs:
        raise InvalidParameter(f"{file}: has no job", field="trace")
    name, times = Counter(job.session.id for job in jobs).most_common(1)[0]
    if times > 1:
        raise InvalidParameter(f"{file}: name: job {name} is there {times} times", field="name")
    return jobs


class _Models:
    """Which nodes have which model."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._known: dict[tuple[str, ...], tuple[AgentId, ...]] = {(): ()}

    def nodes_with(self, line: Line, models: tuple[str, ...]) -> tuple[AgentId, ...]:
        """Return the nodes a task may use; empty: all."""
        if models not in self._known:
            self._known[models] = tuple(node.agent_id for node in self._nodes if node.labels.get(MODEL) in models)
            if not self._known[models]:
                raise line.error("gpu_spec", f"no node has the model {'|'.join(models)}")
        return self._known[models]


class _Accelerators:
    """What a GPU of the Philly format is on these nodes."""

    def __init__(self, file: str, nodes: Sequence[Node]) -> None:
        self.slot = measured_slot(nodes)
        if self.slot == CPU:
            raise InvalidParameter(f"{file}: its jobs ask for GPUs, and no node has any", field="nodes")
        self.per_node = max(sum(device.slot == self.slot for device in node.devices) for node in nodes)


def _openb(line: Line, task: OpenbTask, models: _Models) -> Job:
    begin, end = line.number_of("creation_time"), line.number_of("deletion_time")
    begin_run = line.number_of("scheduled_time", begin)
    if end < begin_run:
        raise line.error("deletion_time", f"{end:g} is before it was created or scheduled")
    slots: dict[str, int] = {CPU: task.cpu_milli, MEM: task.memory_mib * _MIB, SHARES: task.gpus * task.milli_each}
    return make_job(
        line.text("name"),
        ResourceSlots(slots),
        submitted_at=begin,
        duration_s=end - begin_run,
        time_limit_s=end - begin_run,
        owner=line.text("qos", "anybody"),
        nodes=models.nodes_with(line, task.models),
    )


def _philly(line: Line, index: int, cluster: _Accelerators) -> Job:
    gpus = line.whole("num_gpus", at_least=1)
    kernels = next((k for k in range(1, gpus + 1) if gpus % k == 0 and gpus // k <= cluster.per_node), gpus)
    if kernels > _MOST_KERNELS:
        raise line.error("num_gpus", f"{gpus} would be a gang of {kernels}; at most {_MOST_KERNELS}")
    try:
        when = datetime.fromisoformat(line.text("timestamp"))
    except ValueError:
        raise line.error("timestamp", f"{line.text('timestamp')[:40]!r} is no date and time") from None
    return make_job(
        f"philly-{index:06}",
        ResourceSlots({cluster.slot: gpus // kernels * UNITS_PER_COUNT}),
        submitted_at=when.replace(tzinfo=when.tzinfo or UTC).timestamp(),
        duration_s=line.number_of("duration"),
        time_limit_s=line.number_of("duration"),
        owner=line.text("cluster"),
        project=line.text("cluster"),
        size=kernels,
        mode=ClusterMode.MULTI_NODE if kernels > 1 else ClusterMode.SINGLE_NODE,
    )


def _ours(line: Line) -> Job:
    amounts = line.fields.get("slots")
    if not isinstance(amounts, dict) or not amounts:
        raise line.error("slots", "is missing, or no object of amounts by slot")
    try:
        slots = ResourceSlots.parse(amounts, field="slots")
    except InvalidParameter as error:
        raise line.error("slots", error.message) from None
    size = line.whole("cluster_size", 1, at_least=1)
    if size > _MOST_KERNELS:
        raise line.error("cluster_size", f"at most {_MOST_KERNELS}")
    mode = line.text("cluster_mode", ClusterMode.SINGLE_NODE.value)
    if mode not in list(ClusterMode):
        raise line.error("cluster_mode", f"{mode[:40]!r} is neither {' nor '.join(ClusterMode)}")
    return make_job(
        line.text("name"),
        slots,
        submitted_at=line.number_of("submitted_at"),
        duration_s=line.number_of("duration"),
        owner=line.text("owner", "anybody"),
        project=line.text("project", "default"),
        domain=line.text("domain", "default"),
        priority=line.whole("priority", 10),
        time_limit_s=None if line.fields.get("time_limit") is None else line.number_of("time_limit"),
        size=size,
        mode=ClusterMode(mode),
    )

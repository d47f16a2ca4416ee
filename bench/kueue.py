"""Kueue's own performance scenario in real time: 15,000 workloads from 30 queues in 5 cohorts.

Every queue has a quota of 20 units and may borrow all that its cohort of 6 has: 120 units. Here a cohort is a resource
group with one node of 120 cores, a queue a project, and ``fifo`` in bands of priority decides without preemption. As in
Kueue's runner nothing is executed: a workload holds its units for its time and ends. Work and arrivals bound the whole
from below at 66 s. The control plane is :mod:`.control_plane`: every step of a workload's life is committed to disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from actors.contracts import SubmitRequest
from backendai_ray.core.devices import Device
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import AgentId, DeviceId, ResourceGroupName, SessionId
from backendai_ray.core.sessions import TERMINAL, KernelSpec, SessionSpec, Status
from backendai_ray.core.slots import CPU, UNITS_PER_COUNT, ResourceSlots
from bench.control_plane import ControlPlane, PretendingAgent, control_plane, until
from bench.figures import Report

COHORTS, QUEUES, QUOTA = 5, 6, 20


@dataclass(frozen=True, slots=True)
class Kind:
    """Workloads of one size; each queue gets ``count`` of them."""

    name: str
    count: int
    units: int
    runs_s: float
    every_s: float
    priority: int
    """Kueue's are 50, 100 and 200; ours go up to 100."""


KINDS = (
    Kind("small", 350, 1, 0.2, 0.1, 25),
    Kind("medium", 100, 5, 0.5, 0.5, 50),
    Kind("large", 50, 20, 1.0, 1.2, 100),
)
"""As in kubernetes-sigs/kueue, test/performance/scheduler/configs/baseline/generator.yaml."""
_LIMIT_S = 600.0
"""How long after the last arrival the scenario may last before it is given up."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--rounds", type=int, default=1, help="times the scenario is run (default 1)")
    parser.add_argument("--part", type=float, default=1.0, help="part of each queue's workloads (default 1: all)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Run the scenario."""
    if not 0 < options.part <= 1 or options.rounds < 1:
        print("kueue: --part is above 0 and at most 1, --rounds at least 1", file=sys.stderr)
        raise SystemExit(2)
    try:
        runs = [asyncio.run(_scenario(options.part)) for _ in range(options.rounds)]
    except BackendError as error:
        print(f"kueue: {error.message}", file=sys.stderr)
        raise SystemExit(1) from None
    report.add("kueue.makespan.s", "s", [makespan for makespan, _ in runs])
    for kind in KINDS:
        report.add(f"kueue.{kind.name}.wait.s", "s", [statistics.mean(waits[kind.name]) for _, waits in runs])


@dataclass(frozen=True, slots=True)
class _Workload:
    at_s: float
    cohort: int
    queue: int
    kind: Kind


def _workloads(part: float) -> Iterator[_Workload]:
    for cohort in range(COHORTS):
        for queue in range(QUEUES):
            for kind in KINDS:
                for number in range(max(1, round(kind.count * part))):
                    yield _Workload(number * kind.every_s, cohort, queue, kind)


class _Cohorts:
    """The nodes, and when each workload's kernel was ordered and ended."""

    def __init__(self) -> None:
        self.kind_of: dict[SessionId, Kind] = {}
        self.ordered_at: dict[SessionId, float] = {}
        cores = [Device(CPU, DeviceId(str(i)), UNITS_PER_COUNT) for i in range(QUEUES * QUOTA)]
        self.agents = [
            PretendingAgent(AgentId(f"cohort-{i}"), cores, ResourceGroupName(f"cohort-{i}"), self._runs_for)
            for i in range(COHORTS)
        ]
        for agent in self.agents:
            agent.on_order = self._ordered

    def _ordered(self, spec: KernelSpec) -> None:
        self.ordered_at[SessionId(spec.session_id)] = time.perf_counter()

    def _runs_for(self, spec: KernelSpec) -> float:
        return self.kind_of[SessionId(spec.session_id)].runs_s


async def _scenario(part: float) -> tuple[float, dict[str, list[float]]]:
    """Return the makespan and the waits of each kind, from the time of arrival to the order for its kernel."""
    cohorts = _Cohorts()
    arrivals = sorted(_workloads(part), key=lambda one: one.at_s)
    async with control_plane(cohorts.agents) as plane:
        await plane.schedule()
        began = time.perf_counter()
        arrived: dict[SessionId, float] = {}
        async with asyncio.TaskGroup() as submits:
            for one in arrivals:
                await asyncio.sleep(max(0.0, began + one.at_s - time.perf_counter()))
                spec = _spec(plane, one)
                arrived[spec.id] = began + one.at_s
                cohorts.kind_of[spec.id] = one.kind
                submits.create_task(_submit(plane, spec))
        await until(partial(_nothing_lives, plane), limit_s=_LIMIT_S, every_s=0.1)
        makespan = time.perf_counter() - began
    waits: dict[str, list[float]] = defaultdict(list)
    for session_id, kind in cohorts.kind_of.items():
        waits[kind.name].append(cohorts.ordered_at[session_id] - arrived[session_id])
    return makespan, waits


def _spec(plane: ControlPlane, one: _Workload) -> SessionSpec:
    return plane.spec(
        resource_group=ResourceGroupName(f"cohort-{one.cohort}"),
        project=f"queue-{one.cohort}-{one.queue}",
        slots=ResourceSlots([(CPU, one.kind.units * UNITS_PER_COUNT)]),
        priority=one.kind.priority,
    )


async def _submit(plane: ControlPlane, spec: SessionSpec) -> None:
    await plane.manager.submit(SubmitRequest(spec=spec))


async def _nothing_lives(plane: ControlPlane) -> bool:
    alive = [status.value for status in Status if status not in TERMINAL]
    return not (await plane.manager.sessions(None, statuses=alive, limit=1, offset=0)).total

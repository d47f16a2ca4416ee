"""Single passes of a policy over many nodes and waiting sessions, as the policy actor of a resource group runs them."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AccessKey, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.reports import DeviceTable, NodeReport
from backendai_ray.core.scheduling import (
    Change,
    Changes,
    KernelHeld,
    NodeChanged,
    RunningKernel,
    SessionQueued,
    SessionUnqueued,
)
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots
from backendai_ray.plugins import load_policy
from bench import worlds
from policies.checking import problems_of
from policies.columns import RoomCache
from policies.mirror import Mirror

_GROUP = ResourceGroupName("default")
_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Case:
    """A policy and a selection, and whether the nodes are in use."""

    policy: str
    selection: str
    busy: bool = False
    """All GPUs but one of every node are held by kernels with time limits, and the first session waits for a node."""
    name: str = ""


CASES = (
    Case("fifo", "concentrated", name="pass.s"),
    Case("fifo", "dispersed", name="pass.dispersed.s"),
    Case("fifo", "fragmentation", name="pass.fragmentation.s"),
    Case("drf", "concentrated", name="pass.drf.s"),
    Case("backfill", "concentrated", name="pass.backfill.s"),
    Case("backfill", "concentrated", busy=True, name="pass.backfill.busy.s"),
)


class PassBench:
    """A warm world; every :meth:`run` lets new sessions wait in place of the last ones."""

    def __init__(self, case: Case, nodes: int, pending: int) -> None:
        self._policy = load_policy(case.policy, case.selection)
        self._pending = pending
        self._case = case
        self._mirror = Mirror(_GROUP)
        self._rooms = RoomCache()
        self._rounds = 0
        self._waiting: list[SessionId] = []
        self._take_world(nodes)
        gc.collect()
        gc.freeze()  # as the policy actor does
        self.run()  # the first pass lays the nodes out

    def run(self) -> float:
        """Return seconds of one pass: changes taken in, decided, checked."""
        self._rounds += 1
        new = worlds.waiting(self._pending, self._rounds, time_limit_s=_LIMIT_S)
        if self._case.busy:
            new[0] = worlds.asking_for(new[0], worlds.a_whole_node())
        changes: list[Change] = [*map(SessionUnqueued, self._waiting), *map(SessionQueued, new)]
        self._waiting = [session.id for session in new]
        began = time.perf_counter()
        self._take(changes)
        snapshot = self._mirror.snapshot(float(self._rounds))
        plan = self._policy.decide(snapshot)
        problems = problems_of(snapshot, plan, self._rooms.open(snapshot.nodes))
        took = time.perf_counter() - began
        if problems or (not plan.placements):
            raise RuntimeError(f"{self._case}: {len(plan.placements)} placed; {problems[:1]}")
        return took

    def _take_world(self, count: int) -> None:
        nodes = worlds.nodes(count)
        table = DeviceTable.of(worlds.devices())
        reports = {
            node.agent_id: NodeReport(
                agent_id=node.agent_id,
                incarnation="1",
                version=1,
                resource_group=_GROUP,
                architecture=node.architecture,
                backend="sim",
                devices=table,
            )
            for node in nodes
        }
        changes: list[Change] = [NodeChanged(node.agent_id, "", None) for node in nodes]
        if self._case.busy:
            allocations = _all_but_one_gpu()
            for number, node in enumerate(nodes):
                changes += [
                    KernelHeld(_running(f"{number:05}-{i}", node.agent_id, allocation, 100.0 + (number * 7 + i) % 3000))
                    for i, allocation in enumerate(allocations)
                ]
        self._upto = len(changes)
        self._mirror.take(self._as_changes(changes, full=True), reports)

    def _take(self, changes: list[Change]) -> None:
        self._upto += len(changes)
        self._mirror.take(self._as_changes(changes, full=False), {})

    def _as_changes(self, changes: list[Change], *, full: bool) -> Changes:
        return Changes(resource_group=_GROUP, incarnation="bench", upto=self._upto, full=full, changes=tuple(changes))


def _all_but_one_gpu() -> list[Allocation]:
    devices = DeviceMap(worlds.devices())
    slots = ResourceSlots([(CPU, 4 * UNITS_PER_COUNT), (MEM, 16 * worlds.GIB), (worlds.GPU, UNITS_PER_COUNT)])
    allocations = []
    for number in range(worlds.GPUS - 1):
        found = devices.allocate(slots)
        assert isinstance(found, Allocation)
        devices.hold(KernelId(str(number)), found)
        allocations.append(found)
    return allocations


def _running(name: str, agent_id: object, allocation: Allocation, limit_s: float) -> RunningKernel:
    return RunningKernel(
        kernel_id=KernelId(name),
        session_id=SessionId(name),
        agent_id=agent_id,  # type: ignore[arg-type]
        access_key=AccessKey("AKIA0000000000000000"),
        project="default",
        domain="default",
        allocation=allocation,
        priority=10,
        placed_at=0.0,
        time_limit_s=limit_s,
    )

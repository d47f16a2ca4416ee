"""A Manager as Sokovan sees it: a numbered change log, a ledger that re-checks plans, and faults on request."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from actors.contracts import ManagerContract
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.errors import BackendError, Conflict
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.reports import DeviceTable, NodeReport
from backendai_ray.core.scheduling import (
    Applied,
    Change,
    Changes,
    KernelFreed,
    KernelHeld,
    Node,
    NodeChanged,
    NodeGone,
    PendingSession,
    Placement,
    Plan,
    Refusal,
    Rejection,
    RunningKernel,
    SessionQueued,
    SessionUnqueued,
)

GROUP = ResourceGroupName("default")


class FakeManager:
    """The part of the Manager that Sokovan calls; it commits in memory, and refuses what a Manager would."""

    def __init__(self, group: ResourceGroupName = GROUP) -> None:
        self.group = group
        self.configs: dict[ResourceGroupName, dict[str, Any]] = {
            group: {"policy": "fifo", "selection": "concentrated", "options": {}}
        }
        self.pending: dict[SessionId, PendingSession] = {}
        self.running: dict[KernelId, RunningKernel] = {}
        self.notes: dict[SessionId, Refusal] = {}
        self.placed: list[SessionId] = []
        """In the order of their commit."""
        self.pass_ids: list[str] = []
        self.calls: dict[str, int] = defaultdict(int)
        self.reject_next = 0
        """So many plans are rejected line by line."""
        self.faults: dict[str, list[BackendError]] = defaultdict(list)
        """What the next calls of a method raise, one each."""
        self.raise_after_apply: list[BackendError] = []
        """Raised by the next calls of ``apply`` after they committed: the answer is lost."""
        self._nodes: dict[AgentId, tuple[DeviceMap, NodeChanged]] = {}
        self._log: list[Change] = []
        self._incarnations = 1
        self._submitted = 0
        self._busy = False

    # ── what happens in the cluster ───────────────────────────────────────────────────────────────────────────────

    def submit(self, *sessions: PendingSession) -> None:
        """Let sessions wait, in this order."""
        for submitted in sessions:
            self._submitted += 1
            session = replace(submitted, submitted_at=float(self._submitted))
            self.pending[session.id] = session
            self._log.append(SessionQueued(session))

    def add_node(self, node: Node, *, handle: object = None) -> None:
        """Let a node appear; ``handle`` stands for its report, where it is not the report itself."""
        report = NodeReport(
            agent_id=node.agent_id,
            incarnation="a1",
            version=1,
            resource_group=self.group,
            architecture=node.architecture,
            backend="sim",
            devices=DeviceTable.of(node.devices),
        )
        change = NodeChanged(node.agent_id, node.unschedulable, handle or report)
        self._nodes[node.agent_id] = DeviceMap(node.devices), change
        self._log.append(change)

    def remove_node(self, agent_id: AgentId) -> None:
        """Let a node and its kernels go."""
        for kernel_id in list(self._nodes[agent_id][0].held):
            self.release(kernel_id)
        del self._nodes[agent_id]
        self._log.append(NodeGone(agent_id))

    def release(self, kernel_id: KernelId) -> None:
        """Let a kernel end."""
        kernel = self.running.pop(kernel_id)
        self._nodes[kernel.agent_id][0].release(kernel_id)
        self._log.append(KernelFreed(kernel_id))

    def restart(self) -> None:
        """Come back with the same facts and a new incarnation."""
        self._incarnations += 1
        self._log.clear()

    def devices(self, agent_id: AgentId) -> DeviceMap:
        """Return the ledger of a node."""
        return self._nodes[agent_id][0]

    # ── what Sokovan calls ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def incarnation(self) -> str:
        """The present one."""
        return f"manager-{self._incarnations}"

    async def groups(self) -> Mapping[ResourceGroupName, Mapping[str, Any]]:
        """Return the configurations."""
        self._called("groups")
        return dict(self.configs)

    async def changes(self, group: ResourceGroupName, incarnation: str, since: int) -> Changes:
        """Return what is new, or everything."""
        self._called("changes")
        upto = len(self._log)
        full = incarnation != self.incarnation or since > upto
        news = self._everything() if full else tuple(self._log[since:])
        return Changes(resource_group=group, incarnation=self.incarnation, upto=upto, full=full, changes=news)

    async def apply(self, group: ResourceGroupName, plan: Plan, *, pass_id: str) -> Applied:
        """Commit what fits; two at once are a bug of the caller."""
        self._called("apply")
        assert not self._busy, "two passes of one group at the same time"
        self._busy = True
        try:
            await asyncio.sleep(0)
            return self._apply(plan, pass_id)
        finally:
            self._busy = False

    def _apply(self, plan: Plan, pass_id: str) -> Applied:
        assert pass_id not in self.pass_ids, "a pass id was used twice"
        self.pass_ids.append(pass_id)
        self.notes.update((refusal.session_id, refusal) for refusal in plan.refusals)
        if self.reject_next:
            self.reject_next -= 1
            lines = tuple(Rejection(line.session_id, "the world moved on") for line in plan.placements)
            return Applied(placed=(), rejected=lines, upto=len(self._log))
        placed: list[SessionId] = []
        rejected: list[Rejection] = []
        for placement in plan.placements:
            why_not = self._commit(placement)
            if why_not:
                rejected.append(Rejection(placement.session_id, why_not))
            else:
                placed.append(placement.session_id)
        self.placed += placed
        if self.raise_after_apply:
            raise self.raise_after_apply.pop(0)
        return Applied(placed=tuple(placed), rejected=tuple(rejected), upto=len(self._log))

    def _commit(self, placement: Placement) -> str:
        session = self.pending.get(placement.session_id)
        if session is None or session.version != placement.version:
            return "is not waiting in this version"
        held: list[RunningKernel] = []
        try:
            for one in placement.kernels:
                self._nodes[one.agent_id][0].hold(one.kernel_id, one.allocation)
                held.append(_running(session, one.kernel_id, one.agent_id, placement))
        except (Conflict, KeyError) as exc:
            for kernel in held:
                self._nodes[kernel.agent_id][0].release(kernel.kernel_id)
            return str(exc)
        del self.pending[session.id]
        self._log.append(SessionUnqueued(session.id))
        for kernel in held:
            self.running[kernel.kernel_id] = kernel
            self._log.append(KernelHeld(kernel))
        return ""

    def _called(self, method: str) -> None:
        self.calls[method] += 1
        if self.faults[method]:
            raise self.faults[method].pop(0)

    def _everything(self) -> tuple[Change, ...]:
        return (
            *(change for _, change in self._nodes.values()),
            *(SessionQueued(session) for session in self.pending.values()),
            *(KernelHeld(kernel) for kernel in self.running.values()),
        )

    def as_contract(self) -> ManagerContract:
        """Return this as the Manager that Sokovan expects; the rest of the contract is not there."""
        return cast(ManagerContract, self)


def _running(session: PendingSession, kernel_id: KernelId, agent_id: AgentId, placement: Placement) -> RunningKernel:
    (allocation,) = (one.allocation for one in placement.kernels if one.kernel_id == kernel_id)
    return RunningKernel(
        kernel_id=kernel_id,
        session_id=session.id,
        agent_id=agent_id,
        access_key=session.access_key,
        project=session.project,
        domain=session.domain,
        allocation=allocation,
        priority=session.priority,
        placed_at=0.0,
        time_limit_s=session.time_limit_s,
        expected_s=session.expected_s,
    )

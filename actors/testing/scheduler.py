"""A scheduler that does nothing by itself, and the simplest policy there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.contracts import SokovanContract
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import SessionNotFound, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import (
    Changes,
    KernelHeld,
    KernelPlacement,
    NodeChanged,
    PendingSession,
    Placement,
    Plan,
    SessionQueued,
)


class FakeSokovan(SokovanContract):
    """Records who woke it and why."""

    def __init__(self) -> None:
        self.wakes: list[tuple[ResourceGroupName, str]] = []
        self.is_down = False

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        if self.is_down:
            raise Unavailable("sokovan is away")
        self.wakes.append((group, why))

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    async def explain(self, group: ResourceGroupName, session_id: SessionId) -> Explanation:
        raise SessionNotFound(session_id=session_id)

    async def rehearse(self, group: ResourceGroupName, session: PendingSession) -> Explanation:
        raise Unavailable("sokovan is a fake")

    async def propose_moves(self, group: ResourceGroupName, request: MoveRequest, *, apply: bool) -> Proposal:
        raise SessionNotFound(session_id=request.session_id)


def first_come_plan(world: Changes) -> Plan:
    """Place what fits, first come first served, on the first node that has room; ``world`` must be a full one."""
    nodes: dict[AgentId, DeviceMap] = {}
    for change in world.changes:
        if isinstance(change, NodeChanged) and not change.unschedulable and isinstance(change.report, NodeReport):
            nodes[change.agent_id] = DeviceMap(change.report.devices.devices())
    for change in world.changes:
        if isinstance(change, KernelHeld) and change.kernel.agent_id in nodes:
            nodes[change.kernel.agent_id].adopt(change.kernel.kernel_id, change.kernel.allocation)
    pending = [change.session for change in world.changes if isinstance(change, SessionQueued)]
    placements = [p for session in pending if not session.waiting_for and (p := _place(session, nodes))]
    return Plan(placements=tuple(placements))


def _place(session: PendingSession, nodes: dict[AgentId, DeviceMap]) -> Placement | None:
    kernels: list[KernelPlacement] = []
    for kernel_id in session.kernel_ids:
        placed = _place_kernel(session, kernel_id, nodes)
        if placed is None:
            for kernel in kernels:
                nodes[kernel.agent_id].release(kernel.kernel_id)
            return None
        kernels.append(placed)
    return Placement(session.id, session.version, tuple(kernels))


def _place_kernel(
    session: PendingSession, kernel_id: KernelId, nodes: dict[AgentId, DeviceMap]
) -> KernelPlacement | None:
    for agent_id in sorted(nodes, key=lambda agent: (agent in session.avoid_agents, agent)):
        allocation = nodes[agent_id].allocate(session.slots)
        if isinstance(allocation, Allocation):
            nodes[agent_id].hold(kernel_id, allocation)
            return KernelPlacement(kernel_id, agent_id, allocation)
    return None

"""One node as its administrators see it."""

from __future__ import annotations

from actors.contracts import Holding, NodeDetail
from backendai_ray.core.errors import AgentNotFound
from backendai_ray.core.ids import AgentId
from backendai_ray.core.machine import Machine

from .views import holds_devices
from .world import World


def node_detail(world: World, agent_id: AgentId) -> NodeDetail:
    """Return all that is known of a node.

    Raises:
        AgentNotFound: there never was one of that id.
    """
    node = world.nodes.get(agent_id)
    if node is None:
        raise AgentNotFound(f"there is no node {agent_id[:80]!r}", agent_id=agent_id[:80])
    report = node.report
    return NodeDetail(
        view=node.view(world.ledger.occupied(agent_id)),
        devices=report.devices.devices() if report else (),
        machine=report.machine if report else Machine(),
        images=report.images if report else (),
        labels=report.labels if report else {},
        notes=report.notes if report else (),
        holdings=_holdings(world, agent_id),
    )


def _holdings(world: World, agent_id: AgentId) -> tuple[Holding, ...]:
    found = [
        Holding(
            kernel_id=kernel.id,
            session_id=session.id,
            session_name=session.spec.name,
            access_key=session.spec.access_key,
            hostname=kernel.hostname,
            status=kernel.status,
            allocation=kernel.allocation,
        )
        for session in world.book.on_agent(agent_id)
        for kernel in session.kernels
        if kernel.agent_id == agent_id and holds_devices(kernel)
    ]
    return tuple(sorted(found, key=lambda one: (one.session_name, one.hostname, one.kernel_id)))

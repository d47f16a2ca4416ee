"""One agent on every node: nodes join and leave the Ray cluster, agents follow.

Level-triggered: every round compares the nodes that are there with the agents that should be, and acts on the
difference, so nothing depends on having seen an event. A node is known by a stable id of ours, because Ray gives a
node that comes back a new id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from backendai_ray.core.ids import AgentId

log = structlog.get_logger()

NODE_ID_LABEL = "backendai.io/node-id"
"""A Ray node label that gives a node its stable id; without it the host name is used."""

ROUND_S = 0.25


@dataclass(frozen=True, slots=True)
class RayNode:
    """A living node of the Ray cluster."""

    ray_id: str
    hostname: str
    label: str = ""


def assign_agent_ids(nodes: Sequence[RayNode], present: Mapping[AgentId, str]) -> dict[AgentId, str]:
    """Return agent id → Ray node id.

    A node that has an id keeps it. Nodes that share a host name (test clusters without labels) get distinct ids.
    """
    known = {ray_id: agent_id for agent_id, ray_id in present.items()}
    assigned = {known[node.ray_id]: node.ray_id for node in nodes if node.ray_id in known}
    for node in sorted((n for n in nodes if n.ray_id not in known), key=lambda n: (not n.label, n.ray_id)):
        wanted = AgentId(node.label or node.hostname)
        assigned[wanted if wanted not in assigned else AgentId(f"{wanted}-{node.ray_id[:8]}")] = node.ray_id
    return assigned


class NodeWatcher:
    """Keeps one agent per living node."""

    def __init__(
        self,
        *,
        list_nodes: Callable[[], Awaitable[Sequence[RayNode]]],
        ensure_agent: Callable[[AgentId, str], Awaitable[None]],
        joined: Callable[[AgentId], Awaitable[None]],
        gone: Callable[[AgentId], Awaitable[None]],
    ) -> None:
        self._list_nodes = list_nodes
        self._ensure_agent = ensure_agent
        self._joined = joined
        self._gone = gone
        self._present: dict[AgentId, str] = {}

    async def run(self) -> None:
        """Watch for ever; a failed round is logged and the next one tries again."""
        while True:
            try:
                await self.step()
            except Exception as exc:  # noqa: BLE001 - the loop must outlive whatever a round meets
                log.warning("nodes.round_failed", error=repr(exc))
            await asyncio.sleep(ROUND_S)

    async def step(self) -> None:
        """Do one round."""
        wanted = assign_agent_ids(await self._list_nodes(), self._present)
        for agent_id in sorted(self._present.keys() - wanted.keys()):
            log.warning("nodes.gone", agent_id=agent_id)
            await self._gone(agent_id)
            del self._present[agent_id]
        for agent_id, ray_id in sorted(wanted.items()):
            if self._present.get(agent_id) == ray_id:
                continue
            log.info("nodes.joined", agent_id=agent_id, ray_node=ray_id)
            await self._ensure_agent(agent_id, ray_id)
            await self._joined(agent_id)
            self._present[agent_id] = ray_id

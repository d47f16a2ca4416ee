"""One agent per node, whatever joins, leaves, fails or comes back."""

from __future__ import annotations

import pytest

from actors.node_watcher import NodeWatcher, RayNode, assign_agent_ids
from backendai_ray.core.ids import AgentId

A = RayNode("ray-a", "alpha")
B = RayNode("ray-b", "beta")


class Cluster:
    """Records what the watcher does."""

    def __init__(self, *nodes: RayNode) -> None:
        self.nodes = list(nodes)
        self.calls: list[tuple[str, ...]] = []
        self.failing: set[AgentId] = set()
        self.watcher = NodeWatcher(
            list_nodes=self._list, ensure_agent=self._ensure, joined=self._joined, gone=self._gone
        )

    async def _list(self) -> list[RayNode]:
        return self.nodes

    async def _ensure(self, agent_id: AgentId, ray_id: str) -> None:
        if agent_id in self.failing:
            raise TimeoutError(agent_id)
        self.calls.append(("ensure", agent_id, ray_id))

    async def _joined(self, agent_id: AgentId) -> None:
        self.calls.append(("joined", agent_id))

    async def _gone(self, agent_id: AgentId) -> None:
        self.calls.append(("gone", agent_id))


async def test_every_node_gets_an_agent_once() -> None:
    cluster = Cluster(A, B)
    await cluster.watcher.step()
    await cluster.watcher.step()
    assert cluster.calls == [
        ("ensure", "alpha", "ray-a"),
        ("joined", "alpha"),
        ("ensure", "beta", "ray-b"),
        ("joined", "beta"),
    ]


async def test_a_node_that_leaves_is_told_once() -> None:
    cluster = Cluster(A, B)
    await cluster.watcher.step()
    cluster.calls.clear()
    cluster.nodes = [B]
    await cluster.watcher.step()
    await cluster.watcher.step()
    assert cluster.calls == [("gone", "alpha")]


async def test_a_node_that_comes_back_under_another_ray_id_keeps_its_own() -> None:
    cluster = Cluster(A)
    await cluster.watcher.step()
    cluster.calls.clear()
    cluster.nodes = [RayNode("ray-a2", "alpha")]
    await cluster.watcher.step()
    assert cluster.calls == [("ensure", "alpha", "ray-a2"), ("joined", "alpha")]


async def test_an_agent_that_does_not_start_is_tried_again() -> None:
    cluster = Cluster(A)
    cluster.failing = {AgentId("alpha")}
    with pytest.raises(TimeoutError):
        await cluster.watcher.step()
    assert cluster.calls == []
    cluster.failing = set()
    await cluster.watcher.step()
    assert ("joined", "alpha") in cluster.calls


def test_labels_name_nodes_and_shared_host_names_stay_distinct() -> None:
    assigned = assign_agent_ids([RayNode("r1", "vm", "n1"), RayNode("r2", "vm"), RayNode("r3-and-more", "vm")], {})
    assert assigned == {"n1": "r1", "vm": "r2", "vm-r3-and-m": "r3-and-more"}


def test_a_node_keeps_its_id_when_its_namesake_leaves() -> None:
    first = assign_agent_ids([RayNode("r1", "vm"), RayNode("r2", "vm")], {})
    assert assign_agent_ids([RayNode("r2", "vm")], first) == {"vm-r2": "r2"}

"""Nodes on which starts fail come last for a while."""

from __future__ import annotations

from actors.manager.nodes import FAILURE_HALF_LIFE_S
from actors.testing import GROUP, FakeAgent, FakeCluster
from backendai_ray.core.ids import AgentId
from backendai_ray.core.scheduling import NodeChanged
from backendai_ray.core.sessions import ClusterMode, Reason, Session


async def failures(cluster: FakeCluster) -> dict[str, int]:
    """Return what the scheduler is told of each node."""
    world = await cluster.manager.changes(GROUP, "", 0)
    return {one.agent_id: one.failures for one in world.changes if isinstance(one, NodeChanged)}


async def placed(cluster: FakeCluster, **spec: object) -> tuple[Session, FakeAgent]:
    session = (await cluster.submit(**spec)).session
    await cluster.schedule()
    session = await cluster.get(session.id)
    return session, cluster.agents[session.main.agent_id or AgentId("")]


async def test_a_failed_start_counts_for_a_while(cluster: FakeCluster) -> None:
    session, agent = await placed(cluster)
    await cluster.tell(agent, [agent.end(session.main.id, Reason.START_FAILED, retryable=True)])
    others = {name: 0 for name in cluster.agents if name != agent.agent_id}
    assert await failures(cluster) == {agent.agent_id: 1, **others}
    await cluster.pass_time(FAILURE_HALF_LIFE_S + 10, step_s=10)
    assert await failures(cluster) == {agent.agent_id: 0, **others}
    incarnation = (await cluster.manager.changes(GROUP, "", 0)).incarnation
    told = (await cluster.manager.changes(GROUP, incarnation, 0)).changes
    counts = [one.failures for one in told if isinstance(one, NodeChanged) and one.agent_id == agent.agent_id]
    assert counts[-2:] == [1, 0]


async def test_of_a_gang_only_the_node_that_failed_is_blamed(cluster: FakeCluster) -> None:
    session, agent = await placed(cluster, cluster_size=5, cluster_mode=ClusterMode.MULTI_NODE)
    assert len({kernel.agent_id for kernel in session.kernels}) == 2
    await cluster.tell(agent, [agent.end(session.main.id, Reason.START_FAILED, retryable=True)])
    assert [count for name, count in (await failures(cluster)).items() if name != agent.agent_id] == [0]
    assert (await failures(cluster))[agent.agent_id] == 1


async def test_an_image_that_is_not_there_is_not_the_nodes_fault(cluster: FakeCluster) -> None:
    session, agent = await placed(cluster)
    await cluster.tell(agent, [agent.end(session.main.id, Reason.IMAGE_NOT_FOUND)])
    assert not any((await failures(cluster)).values())


async def test_a_start_whose_time_was_up_counts(cluster: FakeCluster) -> None:
    _, agent = await placed(cluster)
    await cluster.pass_time(70)
    assert (await failures(cluster))[agent.agent_id] >= 1


async def test_a_session_that_ran_before_it_ended_blames_nobody(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = cluster.agents[session.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(session.main.id, Reason.START_FAILED)])
    assert not any((await failures(cluster)).values())

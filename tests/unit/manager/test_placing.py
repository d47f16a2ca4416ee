"""What becomes of a plan."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.testing import GROUP, FakeCluster
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName, SessionId
from backendai_ray.core.scheduling import Plan, Refusal, RefusalCode
from backendai_ray.core.sessions import STARTING, ClusterMode, Reason, Status
from backendai_ray.core.slots import CPU, ResourceSlots


async def test_one_commit_and_one_call_per_agent(cluster: FakeCluster) -> None:
    sessions = [(await cluster.submit()).session for _ in range(6)]
    commits = len(cluster.store.commits)
    applied = await cluster.schedule()
    assert set(applied.placed) == {session.id for session in sessions}
    assert len(cluster.store.commits) == commits + 1
    creates = {agent.agent_id: agent.names_of_calls().count("create") for agent in cluster.agents.values()}
    assert creates == {"a1": 1, "a2": 1}
    assert sum(len(agent.alive()) for agent in cluster.agents.values()) == 6
    assert applied.upto == (await cluster.manager.changes(GROUP, "", 0)).upto


async def test_a_stale_line_costs_only_itself(cluster: FakeCluster) -> None:
    first, second, third = [(await cluster.submit()).session for _ in range(3)]
    plan = await cluster.plan()
    await cluster.terminate(first)
    await cluster.manager.rename(second.spec.access_key, second.id, "renamed", request_id="r")
    applied = await cluster.manager.apply(GROUP, plan, pass_id="p")
    assert applied.placed == (third.id,)
    assert {r.session_id: r.message for r in applied.rejected} == {
        first.id: "the session does not wait any more",
        second.id: "the session has changed since the plan was made",
    }
    assert (await cluster.schedule()).placed == (second.id,)


async def test_a_plan_twice_places_once(cluster: FakeCluster) -> None:
    await cluster.submit()
    plan = await cluster.plan()
    doubled = Plan(placements=plan.placements * 2)
    results = await asyncio.gather(*(cluster.manager.apply(GROUP, doubled, pass_id="p") for _ in range(3)))
    assert sum(len(applied.placed) for applied in results) == 1
    await cluster.settle()
    assert sum(len(agent.alive()) for agent in cluster.agents.values()) == 1


async def test_devices_are_never_given_twice(cluster: FakeCluster) -> None:
    """1. Two plans are made of the same moment. 2. Both are applied. 3. The second one's lines do not fit any more."""
    one, two = [(await cluster.submit(slots=ResourceSlots({CPU: 4000}))).session for _ in range(2)]
    plan = await cluster.plan()
    first, second = plan.placements
    same_place = replace(
        second, kernels=(replace(second.kernels[0], agent_id=AgentId("a1"), allocation=first.kernels[0].allocation),)
    )
    assert (await cluster.manager.apply(GROUP, Plan(placements=(first,)), pass_id="p")).placed == (one.id,)
    applied = await cluster.manager.apply(GROUP, Plan(placements=(same_place,)), pass_id="p")
    assert applied.placed == ()
    assert "cpu device 0 has 0 free" in applied.rejected[0].message
    assert (await cluster.get(two.id)).status is Status.PENDING


async def test_a_gang_is_placed_whole_or_not_at_all(cluster: FakeCluster) -> None:
    gang = (await cluster.submit(cluster_size=6, cluster_mode=ClusterMode.MULTI_NODE)).session
    (line,) = (await cluster.plan()).placements
    await cluster.running()  # takes a core that the plan counts on
    applied = await cluster.manager.apply(GROUP, Plan(placements=(replace(line, version=gang.version),)), pass_id="p")
    assert applied.placed == ()
    await cluster.check()
    await cluster.schedule()
    placed = await cluster.get(gang.id)
    assert placed.status is Status.SCHEDULED
    assert {kernel.agent_id for kernel in placed.kernels} == {"a1", "a2"}
    specs = [agent.specs[k.id] for k in placed.kernels for agent in cluster.agents.values() if k.id in agent.specs]
    assert {spec.cluster_hosts for spec in specs} == {("main1", "sub1", "sub2", "sub3", "sub4", "sub5")}
    assert [spec.hostname for spec in specs] == ["main1", "sub1", "sub2", "sub3", "sub4", "sub5"]


async def test_a_plan_of_nonsense_is_rejected_line_by_line(cluster: FakeCluster) -> None:
    await cluster.submit()
    (line,) = (await cluster.plan()).placements
    kernel = line.kernels[0]
    nonsense = {
        "does not place exactly": replace(line, kernels=()),
        "is no node of the group": replace(line, kernels=(replace(kernel, agent_id=AgentId("a9")),)),
        "less than it asked for": replace(line, kernels=(replace(kernel, allocation=Allocation()),)),
        "does not wait any more": replace(line, session_id=SessionId("nobody")),
    }
    for why, bad in nonsense.items():
        applied = await cluster.manager.apply(GROUP, Plan(placements=(bad,)), pass_id="p")
        assert applied.placed == ()
        assert why in applied.rejected[0].message
    wrong_group = await cluster.manager.apply(ResourceGroupName("other"), Plan(placements=(line,)), pass_id="p")
    assert "belongs to the resource group default" in wrong_group.rejected[0].message


async def test_when_the_commit_fails_nothing_is_held(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    plan = await cluster.plan()
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await cluster.manager.apply(GROUP, plan, pass_id="p")
    cluster.store.is_away = False
    await cluster.check()
    assert not any(agent.calls.count(("create", [session.main.id])) for agent in cluster.agents.values())
    assert (await cluster.manager.apply(GROUP, plan, pass_id="p")).placed == (session.id,)


async def test_a_placement_of_unknown_outcome_that_happened(cluster: FakeCluster) -> None:
    """1. The commit of a plan happens, its answer is lost. 2. The sweep asks the store and orders the kernels."""
    session = (await cluster.submit()).session
    cluster.store.forgets_to_answer = 1
    with pytest.raises(StoreUnavailable):
        await cluster.schedule()
    await cluster.pass_time(12)
    assert (await cluster.get(session.id)).status in STARTING
    assert sum(len(agent.alive()) for agent in cluster.agents.values()) == 1


async def test_nothing_goes_to_a_node_that_is_away(cluster: FakeCluster) -> None:
    await cluster.submit()
    (line,) = (await cluster.plan()).placements
    await cluster.manager.agent_gone(line.kernels[0].agent_id)
    applied = await cluster.manager.apply(GROUP, Plan(placements=(line,)), pass_id="p")
    assert "has left the cluster" in applied.rejected[0].message


async def test_a_waiting_session_says_why(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    refusal = Refusal(session.id, RefusalCode.NOT_ENOUGH, "every node is busy")
    await cluster.manager.apply(GROUP, Plan(refusals=(refusal,)), pass_id="p")
    waiting = await cluster.get(session.id)
    assert (waiting.reason, waiting.message) == (Reason.WAITING, "every node is busy")
    await cluster.schedule()
    assert (await cluster.get(session.id)).message == "placed on a1"


async def test_changes_are_told_from_where_the_follower_stands(cluster: FakeCluster) -> None:
    full = await cluster.manager.changes(GROUP, "", 0)
    assert full.full
    assert not (await cluster.manager.changes(GROUP, full.incarnation, full.upto)).changes
    await cluster.submit()
    news = await cluster.manager.changes(GROUP, full.incarnation, full.upto)
    assert not news.full
    assert len(news.changes) == 1
    assert (await cluster.manager.changes(GROUP, full.incarnation, full.upto + 99)).full
    await cluster.restart()
    assert (await cluster.manager.changes(GROUP, full.incarnation, full.upto)).full

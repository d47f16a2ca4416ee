"""Nodes come, go, forget, lie low and come back; sessions follow the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from actors.contracts import AgentStatus
from actors.testing import GROUP, FakeAgent, FakeCluster
from backendai_ray.config import ManagerSettings, Settings
from backendai_ray.core.errors import AgentNotFound, KernelNotFound, StoreUnavailable
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.scheduling import NodeChanged, NodeGone
from backendai_ray.core.sessions import ClusterMode, Reason, Session, SessionType, Status
from backendai_ray.core.slots import CPU, ResourceSlots


def agent_of(cluster: FakeCluster, session: Session) -> FakeAgent:
    return cluster.agents[session.main.agent_id or AgentId("")]


async def test_the_usual_life(cluster: FakeCluster) -> None:
    session = await cluster.running()
    assert session.status is Status.RUNNING
    agent = agent_of(cluster, session)
    await cluster.terminate(session)
    await cluster.settle()
    assert agent.calls[-1] == ("destroy", [session.main.id])
    await cluster.tell(agent, [agent.end(session.main.id, Reason.USER_REQUESTED, log_tail=b"bye")])
    await cluster.settle()
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason) == (Status.TERMINATED, Reason.USER_REQUESTED)
    assert cluster.store.kernel_logs == {session.main.id: b"bye"}
    assert agent.kernels == {}  # acknowledged after the commit


async def test_facts_that_cannot_be_committed_are_not_acknowledged(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    cluster.store.is_away = True
    fact = agent.end(session.main.id)
    with pytest.raises(StoreUnavailable):
        await cluster.tell(agent, [fact])
    assert "acknowledge" not in agent.names_of_calls()
    cluster.store.is_away = False
    await cluster.tell(agent, [fact])
    await cluster.tell(agent, [fact])  # twice is harmless
    assert (await cluster.get(session.id)).status is Status.TERMINATED


async def test_a_batch_session_gets_its_command_once_and_ends_with_it(cluster: FakeCluster) -> None:
    session = await cluster.running(type=SessionType.BATCH, startup_command="make")
    agent = agent_of(cluster, session)
    assert ("startup", (session.main.id, "make")) in agent.calls
    await cluster.tell(agent, [agent.finish_startup(session.main.id, 0)])
    await cluster.tell(agent, [agent.end(session.main.id)])
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason, ended.exit_code) == (Status.TERMINATED, Reason.TASK_FINISHED, 0)


async def test_a_lost_order_to_create_costs_one_sweep(cluster: FakeCluster) -> None:
    await cluster.submit()
    for agent in cluster.agents.values():
        agent.loses_orders = 1
    await cluster.schedule()
    for agent in cluster.agents.values():
        agent.loses_orders = 0
    assert not any(agent.alive() for agent in cluster.agents.values())
    await cluster.pass_time(11)
    assert sum(len(agent.alive()) for agent in cluster.agents.values()) == 1


async def test_a_lost_order_to_destroy_costs_one_sweep(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    agent.loses_orders = 1
    await cluster.terminate(session)
    await cluster.settle()
    assert agent.kernels[session.main.id].status is Status.RUNNING
    agent.is_quick = True
    await cluster.pass_time(11)
    assert (await cluster.get(session.id)).status is Status.TERMINATED


async def test_lost_word_of_a_start_costs_one_sweep(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await cluster.schedule()
    agent = agent_of(cluster, await cluster.get(session.id))
    agent.start(session.main.id)  # and does not tell
    await cluster.pass_time(11)
    assert (await cluster.get(session.id)).status is Status.RUNNING


async def test_a_container_that_vanished_is_noticed(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent_of(cluster, session).kernels.clear()
    await cluster.pass_time(70)
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason) == (Status.TERMINATED, Reason.CONTAINER_LOST)


async def test_a_kernel_that_was_never_made_can_be_ended(cluster: FakeCluster) -> None:
    """Also on a second attempt, of which the agent never heard."""
    session = (await cluster.submit()).session
    await cluster.schedule()
    agent = agent_of(cluster, await cluster.get(session.id))
    await cluster.tell(agent, [agent.end(session.main.id, Reason.START_FAILED, retryable=True)])
    await cluster.settle()
    for one in cluster.agents.values():
        one.loses_orders = 1
    await cluster.schedule()
    for one in cluster.agents.values():
        one.loses_orders = 0
    second = await cluster.get(session.id)
    assert (second.status, second.attempt) == (Status.SCHEDULED, 2)
    await cluster.terminate(second)
    await cluster.pass_time(12)
    assert (await cluster.get(session.id)).status is Status.TERMINATED


async def test_another_try_avoids_the_node_that_failed(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await cluster.schedule()
    first = agent_of(cluster, await cluster.get(session.id))
    await cluster.tell(first, [first.end(session.main.id, Reason.START_FAILED, retryable=True)])
    assert (await cluster.get(session.id)).status is Status.PENDING
    await cluster.schedule()
    again = await cluster.get(session.id)
    assert again.attempt == 2
    assert again.main.agent_id != first.agent_id


async def test_late_word_of_an_earlier_attempt_is_dropped(cluster: FakeCluster) -> None:
    session = (await cluster.submit(designated_agents=())).session
    await cluster.schedule()
    agent = agent_of(cluster, await cluster.get(session.id))
    old = agent.start(session.main.id)
    await cluster.tell(agent, [agent.end(session.main.id, Reason.START_FAILED, retryable=True)])
    await cluster.schedule()
    await cluster.tell(agent, [old])
    again = await cluster.get(session.id)
    assert (again.status, again.attempt) == (Status.SCHEDULED, 2)


async def test_a_silent_node_gets_nothing_new_and_is_lost_in_the_end(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    agent.is_down = True
    await cluster.pass_time(12)
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert not views[agent.agent_id].schedulable
    assert views[agent.agent_id].status is AgentStatus.ALIVE
    assert (await cluster.get(session.id)).status is Status.RUNNING
    await cluster.pass_time(50)
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason) == (Status.ERROR, Reason.AGENT_LOST)
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert views[agent.agent_id].status is AgentStatus.LOST
    assert not views[agent.agent_id].occupied


async def test_a_node_that_comes_back_in_time_loses_nothing(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    agent.is_down = True
    await cluster.pass_time(40)
    agent.is_down = False
    await cluster.pass_time(3)
    assert (await cluster.get(session.id)).status is Status.RUNNING
    assert all(view.schedulable for view in await cluster.manager.agents())


async def test_leftovers_of_a_lost_node_are_destroyed_before_it_is_used_again(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    agent.is_down = True
    await cluster.pass_time(70)
    agent.is_down = False
    await cluster.pass_time(2)
    assert ("destroy", [session.main.id]) in agent.calls
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert "being removed" in views[agent.agent_id].message
    await cluster.tell(agent, [agent.end(session.main.id)])
    await cluster.settle()
    assert all(view.schedulable for view in await cluster.manager.agents())
    assert agent.kernels == {}


async def test_a_part_of_a_gang_that_was_given_up_is_ended_before_its_node_is_used_again(cluster: FakeCluster) -> None:
    """Found by a seed of `python -m bench faults`.

    1. A gang runs on two nodes. 2. One is away for so long that it is lost, and the gang with it. 3. The other node is
    slow to end its part, so that the session still lives. 4. The lost node comes back, and its part still runs there.
    5. Its devices counted as free, and were given to somebody else.
    """
    gang = await cluster.running(
        cluster_size=2, cluster_mode=ClusterMode.MULTI_NODE, slots=ResourceSlots([(CPU, 4000)])
    )
    lost, slow = gang.kernels
    agent = cluster.agents[lost.agent_id or AgentId("")]
    agent.is_down = True
    await cluster.pass_time(70)
    ending = await cluster.get(gang.id)
    assert [kernel.status for kernel in ending.kernels] == [Status.TERMINATED, Status.TERMINATING]
    agent.is_down = False
    await cluster.pass_time(2)
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert "being removed" in views[agent.agent_id].message
    assert ("destroy", [lost.id]) in agent.calls
    await cluster.tell(agent, [agent.end(lost.id)])
    await cluster.settle()
    assert all(view.schedulable for view in await cluster.manager.agents())
    other = cluster.agents[slow.agent_id or AgentId("")]
    await cluster.tell(other, [other.end(slow.id)])
    await cluster.settle()
    assert (await cluster.get(gang.id)).is_terminal
    assert not agent.kernels
    assert not other.kernels


async def test_ended_while_its_node_is_away(cluster: FakeCluster) -> None:
    """Forced or not, a session whose node is silent ends when the node is lost, and not before."""
    for forced in (False, True):
        session = await cluster.running()
        agent = agent_of(cluster, session)
        agent.is_down = True
        assert (await cluster.terminate(session, forced=forced)).status is Status.TERMINATING
        await cluster.pass_time(45)
        assert (await cluster.get(session.id)).status is Status.TERMINATING
        await cluster.pass_time(20)
        assert (await cluster.get(session.id)).status is Status.TERMINATED
        agent.is_down, agent.is_quick = False, True
        await cluster.pass_time(3)
        agent.is_quick = False


async def test_a_new_incarnation_is_looked_at_before_it_is_used(cluster: FakeCluster) -> None:
    session = await cluster.running(startup_command="jupyter")
    agent = agent_of(cluster, session)
    agent.reincarnate()
    agent.calls.clear()
    with pytest.raises(AgentNotFound):
        await cluster.manager.heartbeat(agent.agent_id, agent.incarnation)
    await cluster.introduce(agent, ready=False)
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert "finds out" in views[agent.agent_id].message
    await cluster.introduce(agent)
    await cluster.settle()
    assert all(view.schedulable for view in await cluster.manager.agents())
    assert agent.names_of_calls() == ["inspect", "startup"]
    assert (await cluster.get(session.id)).status is Status.RUNNING


async def test_an_agent_that_still_recovers_has_not_lost_anything(cluster: FakeCluster) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    kernels = agent.kernels
    agent.kernels = {}
    agent.reincarnate()
    await cluster.introduce(agent, ready=False)
    await cluster.manager.agent_joined(agent.agent_id)
    await cluster.pass_time(8)
    assert (await cluster.get(session.id)).status is Status.RUNNING
    agent.kernels = kernels
    await cluster.introduce(agent)
    await cluster.settle()
    assert (await cluster.get(session.id)).status is Status.RUNNING


async def test_reports_of_past_lives_and_older_ones_are_dropped(cluster: FakeCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    old = agent.report()
    agent.reincarnate()
    agent.version = 3
    await cluster.introduce(agent)
    await cluster.settle()
    await cluster.manager.node_report(agent.agent_id, old.incarnation, old.version, old, ready=True)
    older = replace(agent.report(), version=2)
    await cluster.manager.node_report(agent.agent_id, older.incarnation, 2, older, ready=True)
    world = await cluster.manager.changes(GROUP, "", 0)
    reports = [c.report for c in world.changes if isinstance(c, NodeChanged) and c.agent_id == "a1"]
    assert [(r.incarnation, r.version) for r in reports] == [("a1-2", 3)]  # type: ignore[attr-defined]


async def test_an_unhealthy_node_says_why(cluster: FakeCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    agent.version = 2
    sick = replace(agent.report(), health="the engine does not answer")
    await cluster.manager.node_report(agent.agent_id, agent.incarnation, 2, sick, ready=True)
    views = {view.agent_id: view for view in await cluster.manager.agents()}
    assert views[AgentId("a1")].message == "the engine does not answer"


async def test_a_node_founds_and_changes_its_group(cluster: FakeCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    agent.group, agent.version = ResourceGroupName("gpu"), 2
    await cluster.introduce(agent)
    await cluster.settle()
    assert set(await cluster.manager.groups()) == {"default", "gpu"}
    changes = (await cluster.manager.changes(GROUP, "", 0)).changes
    assert [c.agent_id for c in changes if isinstance(c, NodeChanged)] == ["a2"]
    assert (await cluster.manager.changes(ResourceGroupName("gpu"), "", 0)).changes


async def test_a_node_that_left_is_gone_for_the_scheduler(cluster: FakeCluster) -> None:
    before = await cluster.manager.changes(GROUP, "", 0)
    await cluster.manager.agent_gone(AgentId("a1"))
    news = await cluster.manager.changes(GROUP, before.incarnation, before.upto)
    assert news.changes == (NodeGone(AgentId("a1")),)
    await cluster.manager.agent_joined(AgentId("a1"))
    await cluster.settle()
    assert all(view.schedulable for view in await cluster.manager.agents())


async def test_a_kernel_nobody_knows_is_destroyed(cluster: FakeCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    stray = KernelFact(kernel_id=KernelId("stray"), session_id="gone", status=Status.RUNNING)
    agent.kernels[stray.kernel_id] = stray
    agent.is_quick = True
    await cluster.tell(agent, [stray])
    await cluster.settle()
    assert agent.kernels == {}
    assert all(view.schedulable for view in await cluster.manager.agents())


async def test_a_running_kernel_without_a_record_gets_one_again(cluster: FakeCluster) -> None:
    """The agent's disk lost what it knew; the order to make the kernel says it all, and finds what runs."""
    wanted, ending = (await cluster.submit()).session, (await cluster.submit()).session
    for agent in cluster.agents.values():
        agent.is_quick = True
    await cluster.schedule()
    await cluster.settle()
    for session in (wanted, ending):
        agent = agent_of(cluster, await cluster.get(session.id))
        agent.is_quick = False
        agent.lose_record(session.main.id)
    await cluster.terminate(ending)
    for agent in cluster.agents.values():
        agent.reincarnate()
        await cluster.introduce(agent)
    await cluster.settle()
    session = await cluster.get(wanted.id)
    agent = agent_of(cluster, session)
    assert agent.kernels[wanted.main.id].has_record
    assert agent.kernels[wanted.main.id].allocation == session.main.allocation
    assert session.status is Status.RUNNING
    assert session.attempt == 1
    again = agent_of(cluster, await cluster.get(ending.id))
    assert again.kernels[ending.main.id].status is Status.TERMINATING


async def test_deadlines_ask_before_they_strike(cluster: FakeCluster) -> None:
    """A start that is only slow to be told is not given up; one that hangs is, and tried elsewhere."""
    session = (await cluster.submit()).session
    await cluster.schedule()
    agent = agent_of(cluster, await cluster.get(session.id))
    fact = replace(agent.kernels[session.main.id], status=Status.CREATING)
    agent.kernels[session.main.id] = fact
    await cluster.tell(agent, [fact])
    agent.is_quick = True
    await cluster.pass_time(125)
    again = await cluster.get(session.id)
    assert (again.status, again.attempt) == (Status.PENDING, 2)
    assert "still CREATING" in again.message


async def test_a_wedged_agent_does_not_hold_a_session_for_ever(cluster: FakeCluster) -> None:
    """1. The agent's heart beats, but it answers nothing. 2. The start's time is up. 3. The session is given up."""
    session = (await cluster.submit()).session
    for agent in cluster.agents.values():
        agent.is_down = True
    await cluster.schedule()
    for _ in range(35):
        cluster.clock.advance(1)
        for agent in cluster.agents.values():
            await cluster.manager.heartbeat(agent.agent_id, agent.incarnation)
        await cluster.manager.tick()
    assert (await cluster.get(session.id)).status is Status.TERMINATING


async def test_a_batch_session_is_ended_at_its_time(cluster: FakeCluster) -> None:
    session = await cluster.running(type=SessionType.BATCH, startup_command="sleep", batch_timeout_s=10.0)
    agent_of(cluster, session).is_quick = True
    await cluster.pass_time(15)
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason) == (Status.TERMINATED, Reason.TASK_TIMEOUT)


async def test_pending_for_too_long() -> None:
    cluster = await FakeCluster(settings=Settings(manager=ManagerSettings(pending_timeout_s=10))).start()
    session = (await cluster.submit()).session
    await cluster.pass_time(11)
    ended = await cluster.get(session.id)
    assert (ended.status, ended.reason) == (Status.CANCELLED, Reason.PENDING_TIMEOUT)
    await cluster.kill()


@pytest.fixture
async def impatient() -> AsyncIterator[FakeCluster]:
    """A cluster whose group ``default`` lets sessions wait for 20 s, and everybody else for 10 s."""
    by_group = {"default": 20.0}
    limits = ManagerSettings(pending_timeout_s=10, pending_timeout_by_group_s=by_group, agent_lost_after_s=1e9)
    cluster = await FakeCluster(FakeAgent("a1"), settings=Settings(manager=limits)).start()
    yield cluster
    await cluster.kill()


async def test_how_long_one_waits_is_said_by_the_session_or_else_its_group(impatient: FakeCluster) -> None:
    own = (await impatient.submit(pending_timeout_s=5)).session
    of_group = (await impatient.submit()).session
    await impatient.pass_time(6)
    ended = await impatient.get(own.id)
    assert (ended.status, ended.reason) == (Status.CANCELLED, Reason.PENDING_TIMEOUT)
    assert "longer than 5 s" in ended.message
    await impatient.pass_time(6)
    assert (await impatient.get(of_group.id)).status is Status.PENDING
    await impatient.pass_time(9)
    assert (await impatient.get(of_group.id)).status is Status.CANCELLED


@pytest.mark.parametrize("restart", [False, True])
async def test_waiting_for_others_is_not_waiting_for_a_place(impatient: FakeCluster, restart: bool) -> None:
    """1. It waits for another for a minute. 2. That one ends. 3. Only now its 20 s begin."""
    first = await impatient.running("first")
    second = (await impatient.submit("second", depends_on=(first.id,))).session
    await impatient.pass_time(60)
    assert (await impatient.get(second.id)).status is Status.PENDING
    await impatient.terminate(first)
    agent = agent_of(impatient, first)
    await impatient.tell(agent, [agent.end(first.main.id)])
    if restart:
        await impatient.restart()
    await impatient.pass_time(15)
    assert (await impatient.get(second.id)).status is Status.PENDING
    await impatient.pass_time(6)
    assert (await impatient.get(second.id)).reason is Reason.PENDING_TIMEOUT


async def test_while_the_store_is_away_sessions_go_on_and_nothing_is_lost(cluster: FakeCluster) -> None:
    session = await cluster.running()
    cluster.store.is_away = True
    await cluster.pass_time(12)
    assert (await cluster.manager.route(session.spec.access_key, session.spec.name)).epoch == 0
    with pytest.raises(StoreUnavailable):
        await cluster.terminate(session)
    cluster.store.is_away = False
    assert (await cluster.get(session.id)).status is Status.RUNNING
    assert (await cluster.terminate(session)).status is Status.TERMINATING


async def test_a_slow_agent_holds_up_only_itself(cluster: FakeCluster) -> None:
    cluster.agents[AgentId("a1")].delay_s = 30
    session = (await cluster.submit()).session
    (line,) = (await cluster.plan()).placements
    assert line.kernels[0].agent_id == "a1"
    async with asyncio.timeout(2):
        await cluster.schedule()
        assert (await cluster.terminate(session)).status is Status.TERMINATING


async def test_a_refused_startup_is_ordered_again(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await cluster.running()
    agent = agent_of(cluster, session)
    await cluster.terminate(session)
    await cluster.tell(agent, [agent.end(session.main.id)])
    take = agent.run_startup

    async def refuse(kernel_id: KernelId, command: str, timeout_s: float | None) -> None:
        raise KernelNotFound(kernel_id=kernel_id)

    for one in cluster.agents.values():
        monkeypatch.setattr(one, "run_startup", refuse)
    batch = await cluster.running(type=SessionType.BATCH, startup_command="make")
    monkeypatch.undo()
    assert agent.run_startup == take
    await cluster.pass_time(70)
    agent = agent_of(cluster, batch)
    assert agent.calls.count(("startup", (batch.main.id, "make"))) == 1


async def test_a_manager_that_was_stopped_blames_nobody(cluster: FakeCluster) -> None:
    """1. The machine sleeps for ten minutes. 2. The Manager wakes before anyone could speak. 3. No node is lost."""
    session = await cluster.running()
    parts = await cluster.manager._ready()
    cluster.clock.advance(600)
    parts.minder.forgive(600)
    await cluster.manager.tick()
    await cluster.settle()
    assert (await cluster.get(session.id)).status is Status.RUNNING
    assert all(view.schedulable for view in await cluster.manager.agents())

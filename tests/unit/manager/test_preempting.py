"""What becomes of the preemptions of a plan."""

from __future__ import annotations

import pytest

from actors.testing import GROUP, FakeCluster
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.scheduling import KernelEnding, KernelPlacement, Placement, Plan, Preemption, SessionQueued
from backendai_ray.core.sessions import Reason, Session, SessionType, Status
from backendai_ray.core.slots import CPU, ResourceSlots

BIG = ResourceSlots({CPU: 4000})


async def a_victim(cluster: FakeCluster, **spec: object) -> Session:
    """A batch session that fills a node."""
    return await cluster.running(type=SessionType.BATCH, startup_command="true", slots=BIG, **spec)


async def one_that_waits(cluster: FakeCluster, **spec: object) -> Session:
    return (await cluster.submit(**{"slots": BIG, "priority": 50, **spec})).session


def making_room(waiting: Session, *victims: Session, reschedule: bool = True, grace_s: float | None = None) -> Plan:
    """End the victims; the one that waits is to have the first one's place."""
    room = victims[0].main
    assert room.agent_id is not None
    place = KernelPlacement(waiting.main.id, room.agent_id, room.allocation)
    lines = [Preemption(v.id, waiting.id, f"for {waiting.id}", reschedule, grace_s) for v in victims]
    return Plan(preemptions=tuple(lines), nominations=(Placement(waiting.id, waiting.version, (place,)),))


async def end_all(cluster: FakeCluster, session: Session) -> None:
    for kernel in session.kernels:
        if kernel.agent_id is not None:
            agent = cluster.agents[kernel.agent_id]
            await cluster.tell(agent, [agent.end(kernel.id, Reason.PREEMPTED)])
    await cluster.settle()


async def test_a_victim_runs_again_after_the_one_it_made_room_for(cluster: FakeCluster) -> None:
    victim = await a_victim(cluster)
    await a_victim(cluster)
    waiting = await one_that_waits(cluster)
    applied = await cluster.manager.apply(GROUP, making_room(waiting, victim), pass_id="p")
    assert (applied.preempted, applied.rejected) == ((victim.id,), ())
    await cluster.settle()
    assert (await cluster.get(victim.id)).status is Status.TERMINATING
    await end_all(cluster, victim)
    back = await cluster.get(victim.id)
    assert (back.status, back.preemptions) == (Status.PENDING, 1)
    changes = (await cluster.manager.changes(GROUP, "", 0)).changes
    queued = {change.session.id: change.session for change in changes if isinstance(change, SessionQueued)}
    assert queued[victim.id].submitted_at == victim.created_at
    assert queued[victim.id].avoid_agents == ()
    assert queued[waiting.id].nominated[0].agent_id == victim.main.agent_id
    history = await cluster.manager.history(victim.id)
    assert [(c.after, c.reason) for c in history if c.kernel_id is None][-2:] == [
        (Status.TERMINATING, Reason.PREEMPTED),
        (Status.PENDING, Reason.PREEMPTED),
    ]
    assert f"for {waiting.id}" in history[-1].message


async def test_the_scheduler_hears_who_is_being_ended_for_whom(cluster: FakeCluster) -> None:
    victim, waiting = await a_victim(cluster), await one_that_waits(cluster)
    since = await cluster.manager.changes(GROUP, "", 0)
    await cluster.manager.apply(GROUP, making_room(waiting, victim), pass_id="p")
    news = await cluster.manager.changes(GROUP, since.incarnation, since.upto)
    assert KernelEnding(victim.main.id, waiting.id) in news.changes


async def test_the_grace_goes_to_the_agent_and_survives_the_manager(cluster: FakeCluster) -> None:
    victim, waiting = await a_victim(cluster), await one_that_waits(cluster)
    agent = cluster.agents[victim.main.agent_id or next(iter(cluster.agents))]
    agent.loses_orders = 1
    await cluster.manager.apply(GROUP, making_room(waiting, victim, grace_s=12.0), pass_id="p")
    await cluster.settle()
    await cluster.restart()
    assert agent.graces[victim.main.id] == 12.0
    assert (await cluster.get(waiting.id)).nominated
    await end_all(cluster, victim)
    assert (await cluster.get(victim.id)).status is Status.PENDING


@pytest.mark.parametrize("dies_before_the_end", [True, False])
async def test_a_manager_that_is_killed_meanwhile_goes_on(cluster: FakeCluster, dies_before_the_end: bool) -> None:
    victim, waiting = await a_victim(cluster), await one_that_waits(cluster)
    await cluster.manager.apply(GROUP, making_room(waiting, victim), pass_id="p")
    await cluster.settle()
    if dies_before_the_end:
        await cluster.restart()
        await end_all(cluster, victim)
    else:
        await end_all(cluster, victim)
        await cluster.restart()
    again = await cluster.get(victim.id)
    assert (again.status, again.preemptions) == (Status.PENDING, 1)


async def test_a_store_that_is_away_leaves_everybody_alone(cluster: FakeCluster) -> None:
    victim, waiting = await a_victim(cluster), await one_that_waits(cluster)
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await cluster.manager.apply(GROUP, making_room(waiting, victim), pass_id="p")
    cluster.store.is_away = False
    assert (await cluster.get(victim.id)).status is Status.RUNNING
    assert not (await cluster.get(waiting.id)).nominated


async def test_what_does_not_fit_the_present_costs_all_lines_of_the_beneficiary(cluster: FakeCluster) -> None:
    first, second = await a_victim(cluster), await a_victim(cluster)
    waiting = await one_that_waits(cluster)
    plan = making_room(waiting, first, second)
    await cluster.terminate(second)
    applied = await cluster.manager.apply(GROUP, plan, pass_id="p")
    assert [r.session_id for r in applied.rejected] == [waiting.id]
    assert (await cluster.get(first.id)).status is Status.RUNNING


async def test_nobody_is_ended_twice_for_the_same(cluster: FakeCluster) -> None:
    first, second = await a_victim(cluster), await a_victim(cluster)
    waiting = await one_that_waits(cluster)
    await cluster.manager.apply(GROUP, making_room(waiting, first), pass_id="p")
    waiting = await cluster.get(waiting.id)
    applied = await cluster.manager.apply(GROUP, making_room(waiting, second), pass_id="q")
    assert "already" in applied.rejected[0].message
    assert (await cluster.get(second.id)).status is Status.RUNNING


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"priority": 50}, "has the priority 50"),
        ({"priority": 60}, "has the priority 60"),
        ({"requeue": False}, "cannot be put back"),
    ],
)
async def test_who_is_left_alone(cluster: FakeCluster, spec: dict[str, object], why: str) -> None:
    victim, waiting = await a_victim(cluster, **spec), await one_that_waits(cluster)
    applied = await cluster.manager.apply(GROUP, making_room(waiting, victim), pass_id="p")
    assert why in applied.rejected[0].message
    assert (await cluster.get(victim.id)).status is Status.RUNNING


async def test_victims_that_do_not_make_the_room_are_left_alone(cluster: FakeCluster) -> None:
    first, second = await a_victim(cluster), await a_victim(cluster)
    waiting = await one_that_waits(cluster)
    plan = making_room(waiting, first)
    wrong = Plan(preemptions=making_room(waiting, second).preemptions, nominations=plan.nominations)
    applied = await cluster.manager.apply(GROUP, wrong, pass_id="p")
    assert "has 0 free" in applied.rejected[0].message
    assert (await cluster.get(second.id)).status is Status.RUNNING

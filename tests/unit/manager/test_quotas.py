"""Quotas as the Manager keeps them."""

from __future__ import annotations

import asyncio

import pytest

from actors.testing import GROUP, FakeAgent, FakeCluster
from backendai_ray.core.errors import InvalidParameter, QuotaExceeded, StoreUnavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.quotas import Limits, Scope, ScopeKind, Use
from backendai_ray.core.scheduling import Plan, QuotaChanged
from backendai_ray.core.sessions import Session, Status
from backendai_ray.core.slots import CPU, MEM
from backendai_ray.store import GroupRecord

USER = Scope(ScopeKind.USER, "alice")
PROJECT = Scope(ScopeKind.PROJECT, "default/default")
OTHER = ResourceGroupName("other")


async def end(cluster: FakeCluster, session: Session) -> None:
    """End a session and let its node say that it has ended."""
    running = await cluster.get(session.id)
    await cluster.terminate(running)
    await cluster.settle()
    agent = cluster.agents[running.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(running.main.id)])
    await cluster.settle()


async def test_a_line_over_a_quota_is_rejected_and_the_session_waits_on(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(USER, Limits(slots={CPU: 2000}))
    sessions = [(await cluster.submit(user="alice")).session for _ in range(3)]
    applied = await cluster.schedule()
    assert len(applied.placed) == 2
    [rejection] = applied.rejected
    assert rejection.message == "asks for cpu 1; the quota of user alice allows 2, and 2 are in use"
    waiting = await cluster.get(rejection.session_id)
    assert (waiting.status, waiting.attempt) == (Status.PENDING, 1)
    [view] = await cluster.manager.quotas(None)
    assert (view.used, view.waiting) == (Use({CPU: 2000, MEM: 2 * 2**30}, 2), 1)
    await end(cluster, next(s for s in sessions if s.id in applied.placed))
    assert (await cluster.schedule()).placed == (waiting.id,)


async def test_two_plans_at_once_do_not_share_the_rest_of_a_quota(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(PROJECT, Limits(sessions=1))
    for _ in range(2):
        await cluster.submit()
    plan = await cluster.plan()
    halves = [Plan(placements=plan.placements[:1]), Plan(placements=plan.placements[1:])]
    results = await asyncio.gather(*(cluster.manager.apply(GROUP, half, pass_id="p") for half in halves))
    assert sum(len(applied.placed) for applied in results) == 1


async def test_what_was_counted_for_a_commit_that_failed_is_given_back(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(PROJECT, Limits(sessions=1))
    session = (await cluster.submit()).session
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await cluster.schedule()
    cluster.store.is_away = False
    assert (await cluster.schedule()).placed == (session.id,)


async def test_one_more_than_may_wait_is_refused_when_it_is_submitted(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(USER, Limits(pending=2))
    submits = [cluster.submit(user="alice") for _ in range(5)]
    results = await asyncio.gather(*submits, return_exceptions=True)
    refusals = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refusals) == 3
    assert refusals[0].message.startswith("the quota of user alice allows 2 waiting sessions, and 2 wait")
    assert refusals[0].details == {"scope": "user", "name": "alice", "limit": 2, "waiting": 2}
    await cluster.submit(user="bob")
    await cluster.schedule()
    await cluster.submit(user="alice")


async def test_a_submit_that_fails_or_is_repeated_leaves_no_place_in_the_queue_taken(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(USER, Limits(pending=1))
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await cluster.submit(user="alice")
    cluster.store.is_away = False
    first = await cluster.submit("one", user="alice", key="k")
    again = await cluster.submit("one", user="alice", key="k")
    assert (again.session.id, again.created) == (first.session.id, False)
    await cluster.terminate(first.session)
    await cluster.submit(user="alice")


async def test_a_quota_survives_a_restart_and_its_removal_too(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(USER, Limits(slots={CPU: 0}, pending=7))
    await cluster.manager.set_quota(PROJECT, Limits(sessions=3))
    await cluster.running(user="bob")
    await cluster.manager.set_quota(PROJECT, Limits())
    await cluster.restart()
    [view] = await cluster.manager.quotas(None)
    assert (view.scope, view.limits) == (USER, Limits(slots={CPU: 0}, pending=7))
    await cluster.manager.set_quota(PROJECT, Limits(sessions=3))
    assert [v.used.sessions for v in await cluster.manager.quotas(None) if v.scope == PROJECT] == [1]


async def test_a_quota_of_which_nobody_knows_whether_it_was_saved_holds_as_it_is_stored(cluster: FakeCluster) -> None:
    """Found by a seed of `python -m bench faults`: it was stored, but held only after the next restart."""
    cluster.store.forgets_to_answer = 1
    with pytest.raises(StoreUnavailable):
        await cluster.manager.set_quota(USER, Limits(sessions=1))
    await cluster.pass_time(10)
    for _ in range(2):
        await cluster.submit(user="alice")
    assert len((await cluster.schedule()).placed) == 1
    assert [view.limits for view in await cluster.manager.quotas(None)] == [Limits(sessions=1)]


async def test_a_change_of_a_quota_reaches_every_group_and_wakes_the_scheduler(cluster: FakeCluster) -> None:
    await cluster.settle()
    before = (await cluster.manager.changes(GROUP, "", 0)).upto
    cluster.sokovan.wakes.clear()
    await cluster.manager.set_quota(USER, Limits(sessions=1))
    await cluster.settle()
    world = await cluster.manager.changes(GROUP, "", 0)
    news = await cluster.manager.changes(GROUP, world.incarnation, before)
    assert [change.quota.scope for change in news.changes if isinstance(change, QuotaChanged)] == [USER]
    assert cluster.sokovan.wakes == [(GROUP, "a quota has changed")]


async def test_what_is_held_in_another_group_counts_and_giving_it_back_wakes_this_one() -> None:
    one = FakeCluster(FakeAgent("a1"))
    one.store.group_records[OTHER] = GroupRecord(name=OTHER, policy="fifo", selection="concentrated")
    await one.start()
    await one.manager.set_quota(USER, Limits(slots={CPU: 1000}))
    running = await one.running(user="alice")
    world = await one.manager.changes(OTHER, "", 0)
    [quota] = [change.quota for change in world.changes if isinstance(change, QuotaChanged)]
    assert quota.elsewhere == Use({CPU: 1000, MEM: 2**30}, 1)
    [own] = [c.quota for c in (await one.manager.changes(GROUP, "", 0)).changes if isinstance(c, QuotaChanged)]
    assert own.elsewhere == Use()
    one.sokovan.wakes.clear()
    await end(one, running)
    assert OTHER in {group for group, _ in one.sokovan.wakes}
    news = await one.manager.changes(OTHER, world.incarnation, world.upto)
    assert [change.quota.elsewhere for change in news.changes if isinstance(change, QuotaChanged)] == [Use()]
    await one.check()
    await one.kill()


@pytest.mark.parametrize(
    ("scope", "limits", "field"),
    [
        (Scope(ScopeKind.PROJECT, "ml"), Limits(sessions=1), "name"),
        (Scope(ScopeKind.PROJECT, "default/"), Limits(sessions=1), "name"),
        (Scope(ScopeKind.USER, ""), Limits(sessions=1), "name"),
        (Scope(ScopeKind.DOMAIN, "a/b"), Limits(sessions=1), "name"),
        (USER, Limits(sessions=-1), "sessions"),
        (USER, Limits(slots={CPU: -5}), "slots.cpu"),
    ],
)
async def test_what_cannot_be_a_quota_is_refused(
    cluster: FakeCluster, scope: Scope, limits: Limits, field: str
) -> None:
    with pytest.raises(InvalidParameter, match=f"^{field}: "):
        await cluster.manager.set_quota(scope, limits)
    assert await cluster.manager.quotas(None) == []


async def test_a_gang_counts_with_all_its_kernels(cluster: FakeCluster) -> None:
    await cluster.manager.set_quota(USER, Limits(slots={CPU: 2000}))
    await cluster.submit(user="alice", cluster_size=3)
    [rejection] = (await cluster.schedule()).rejected
    assert rejection.message == "asks for cpu 3, and the quota of user alice allows 2 in all"
    await cluster.manager.set_quota(USER, Limits(slots={CPU: 3000}))
    assert len((await cluster.schedule()).placed) == 1
    assert {node.agent_id for node in await cluster.manager.agents()} == {AgentId("a1"), AgentId("a2")}

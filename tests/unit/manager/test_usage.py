"""What sessions are charged for, exactly once, whatever happens."""

from __future__ import annotations

import pytest

from actors.testing import GROUP, FakeCluster
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AgentId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import KernelHeld, NodeChanged
from backendai_ray.core.sessions import Reason, Session, Status
from backendai_ray.core.slots import CPU
from backendai_ray.core.usage import HOUR_S, Account, Usage
from policies.mirror import Mirror

ALICE: Account = ("default", "default", "alice")


async def end(cluster: FakeCluster, session: Session, **more: object) -> None:
    agent = cluster.agents[session.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(session.main.id, Reason.SELF_TERMINATED, **more)])
    await cluster.settle()


async def follow(cluster: FakeCluster, mirror: Mirror) -> None:
    """Let a policy actor's mirror catch up."""
    changes = await cluster.manager.changes(GROUP, mirror.incarnation, mirror.upto)
    reports = {c.agent_id: c.report for c in changes.changes if isinstance(c, NodeChanged)}
    mirror.take(changes, {agent: report for agent, report in reports.items() if isinstance(report, NodeReport)})


async def usage_anew(cluster: FakeCluster) -> dict[Account, Usage]:
    """Return the usage that a policy actor which knows nothing is told."""
    mirror = Mirror(GROUP)
    await follow(cluster, mirror)
    return dict(mirror.snapshot(0.0).usage)


def core_seconds(usage: Usage) -> float:
    """Return them to a tenth; the tests' clock moves on a little whenever it is read."""
    return round(sum(bucket.used[CPU] for bucket in usage) / 1000, 1)


async def test_a_kernel_is_charged_from_its_placement_to_its_end_with_the_commit_of_the_end(
    cluster: FakeCluster,
) -> None:
    mirror = Mirror(GROUP)
    await follow(cluster, mirror)
    session = await cluster.running(user="alice")
    assert session.main.placed_at == pytest.approx(cluster.clock())
    cluster.clock.advance(2.5 * HOUR_S)
    await end(cluster, session)
    [batch] = [batch for batch in cluster.store.commits if batch.usage]
    assert [(s.id, s.status) for s in batch.sessions] == [(session.id, Status.TERMINATED)]
    await follow(cluster, mirror)
    usage = mirror.snapshot(0.0).usage
    assert list(usage) == [ALICE]
    assert core_seconds(usage[ALICE]) == 2.5 * HOUR_S
    assert await usage_anew(cluster) == usage
    await cluster.restart()
    assert await usage_anew(cluster) == usage


async def test_an_attempt_that_failed_is_charged_and_the_next_one_begins_anew(cluster: FakeCluster) -> None:
    session = (await cluster.submit(user="alice")).session
    await cluster.schedule()
    cluster.clock.advance(20)
    await end(cluster, await cluster.get(session.id), retryable=True)
    waiting = await cluster.get(session.id)
    assert (waiting.status, waiting.main.placed_at) == (Status.PENDING, None)
    cluster.clock.advance(100)
    await cluster.schedule()
    again = await cluster.get(session.id)
    assert again.main.placed_at == pytest.approx(cluster.clock(), abs=0.1)
    cluster.clock.advance(5)
    await end(cluster, again, retryable=True)
    assert core_seconds((await usage_anew(cluster))[ALICE]) == 25


async def test_who_waits_and_is_cancelled_is_charged_nothing(cluster: FakeCluster) -> None:
    session = (await cluster.submit(user="alice")).session
    cluster.clock.advance(HOUR_S)
    await cluster.terminate(session)
    assert await usage_anew(cluster) == {}


async def test_what_runs_is_known_since_when_after_a_restart(cluster: FakeCluster) -> None:
    session = await cluster.running()
    placed_at = session.main.placed_at
    assert placed_at is not None
    cluster.clock.advance(HOUR_S)
    await cluster.manager.restart(session.spec.access_key, session.id, request_id="r")
    await cluster.settle()
    await cluster.restart()
    world = await cluster.manager.changes(GROUP, "", 0)
    assert [c.kernel.placed_at for c in world.changes if isinstance(c, KernelHeld)] == [placed_at]


async def test_an_end_of_unknown_outcome_is_charged_once(cluster: FakeCluster) -> None:
    """1. The end is committed, the answer is lost. 2. The agent tells it again. 3. It is charged once."""
    session = await cluster.running(user="alice")
    cluster.clock.advance(60)
    cluster.store.forgets_to_answer = 1
    with pytest.raises(StoreUnavailable):
        await end(cluster, session)
    await cluster.pass_time(12)
    assert core_seconds((await usage_anew(cluster))[ALICE]) == 60
    await cluster.restart()
    assert core_seconds((await usage_anew(cluster))[ALICE]) == 60


async def test_an_end_that_could_not_be_committed_is_charged_when_it_is(cluster: FakeCluster) -> None:
    session = await cluster.running(user="alice")
    cluster.clock.advance(60)
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await end(cluster, session)
    cluster.store.is_away = False
    assert await usage_anew(cluster) == {}
    await end(cluster, session)
    assert core_seconds((await usage_anew(cluster))[ALICE]) == 60

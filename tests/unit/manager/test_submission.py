"""What becomes of a submit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from actors.contracts import SubmitRequest
from actors.testing import GROUP, OWNER, FakeAgent, FakeCluster
from backendai_ray.core.errors import (
    BackendError,
    IdempotencyMismatch,
    InsufficientResources,
    InvalidParameter,
    NameInUse,
    StoreUnavailable,
)
from backendai_ray.core.ids import AccessKey, AgentId, ResourceGroupName, SessionId
from backendai_ray.core.scheduling import KernelHeld, SessionQueued
from backendai_ray.core.sessions import ClusterMode, DependencyFailure, Reason, SessionType, Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots


async def test_a_session_waits_and_the_scheduler_is_woken(cluster: FakeCluster) -> None:
    cluster.sokovan.wakes.clear()
    submitted = await cluster.submit("work")
    assert submitted.created
    assert submitted.session.status is Status.PENDING
    await cluster.settle()
    assert [group for group, _ in cluster.sokovan.wakes] == [GROUP]
    (first,) = await cluster.manager.history(submitted.session.id)
    assert (first.after, first.reason, first.cause) == (Status.PENDING, Reason.SUBMITTED, "request")


async def test_nothing_is_acknowledged_before_it_is_committed(cluster: FakeCluster) -> None:
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await cluster.submit("work")
    cluster.store.is_away = False
    assert not cluster.store.records
    assert (await cluster.submit("work")).created  # the name is free again


async def test_a_scheduler_that_is_away_holds_nobody_up(cluster: FakeCluster) -> None:
    cluster.sokovan.is_down = True
    assert (await cluster.submit()).created


async def test_a_name_in_use(cluster: FakeCluster) -> None:
    first = (await cluster.submit("work")).session
    with pytest.raises(NameInUse, match="'work'"):
        await cluster.submit("work")
    reused = await cluster.submit("work", reuse=True)
    assert (reused.session.id, reused.created) == (first.id, False)
    with pytest.raises(NameInUse, match="cannot be reused"):
        await cluster.submit("work", reuse=True, image="other")
    assert (await cluster.submit("work", access_key=AccessKey("AKIAOTHER"))).created
    await cluster.terminate(first)
    assert (await cluster.submit("work")).created


async def test_the_same_name_twice_at_once(cluster: FakeCluster) -> None:
    results = await asyncio.gather(*(cluster.submit("work") for _ in range(5)), return_exceptions=True)
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert sum(isinstance(result, NameInUse) for result in results) == 4


async def test_reuse_twice_at_once_makes_one(cluster: FakeCluster) -> None:
    results = await asyncio.gather(*(cluster.submit("work", reuse=True) for _ in range(5)))
    assert len({result.session.id for result in results}) == 1
    assert sum(result.created for result in results) == 1


async def test_an_idempotency_key_leads_to_the_same_session(cluster: FakeCluster) -> None:
    first = await cluster.submit("work", key="k")
    again = await cluster.submit("work", key="k")
    assert (again.session.id, again.created) == (first.session.id, False)
    with pytest.raises(IdempotencyMismatch):
        await cluster.submit("other", key="k")
    assert (await cluster.submit("third", key="k", access_key=AccessKey("AKIAOTHER"))).created


async def test_the_same_key_at_once_and_after_a_restart(cluster: FakeCluster) -> None:
    results = await asyncio.gather(*(cluster.submit("work", key="k") for _ in range(10)))
    assert len({result.session.id for result in results}) == 1
    await cluster.restart()
    assert (await cluster.submit("work", key="k")).session.id == results[0].session.id
    await cluster.terminate(results[0].session)
    assert (await cluster.submit("work", key="k")).session.status is Status.CANCELLED


async def test_an_expired_key_is_forgotten(cluster: FakeCluster) -> None:
    first = (await cluster.submit("work", key="k")).session
    await cluster.terminate(first)
    cluster.clock.advance(cluster.settings.manager.idempotency_ttl_s + 1)
    assert (await cluster.submit("work", key="k")).session.id != first.id
    await cluster.manager.tick()
    assert len(cluster.store.keys) == 1


async def test_a_commit_of_unknown_outcome_that_happened(cluster: FakeCluster) -> None:
    """1. The store takes a session and the answer is lost. 2. The client is told so. 3. The sweep finds it."""
    cluster.store.forgets_to_answer = 1
    with pytest.raises(StoreUnavailable):
        await cluster.submit("work")
    await cluster.pass_time(6)
    assert (await cluster.manager.session(OWNER, "work")).status is Status.PENDING
    assert (await cluster.schedule()).placed


async def test_bad_requests_leave_nothing_behind(cluster: FakeCluster) -> None:
    with pytest.raises(InvalidParameter, match="there are: default"):
        await cluster.submit(resource_group=ResourceGroupName("gpu"))
    for size in (0, 65):
        with pytest.raises(InvalidParameter, match="1 to 64 kernels"):
            await cluster.submit(cluster_size=size)
    with pytest.raises(InvalidParameter, match="you have no session 'nobody'"):
        await cluster.submit(depends_on=(SessionId("nobody"),))
    assert not cluster.store.records


async def test_more_than_any_node_has(cluster: FakeCluster) -> None:
    with pytest.raises(InsufficientResources, match=r"needs cpu 8, mem 64g; .* has cpu 4, mem 16g: short by cpu 4"):
        await cluster.submit(slots=ResourceSlots({CPU: 8000, MEM: 64 * 2**30}))
    with pytest.raises(InsufficientResources, match=r"short by cuda\.device 1"):
        await cluster.submit(slots=ResourceSlots({CPU: 1000, "cuda.device": 1000}))
    with pytest.raises(InsufficientResources, match="together need"):
        await cluster.submit(cluster_size=5)
    assert (await cluster.submit(cluster_size=5, cluster_mode=ClusterMode.MULTI_NODE)).created


async def test_while_no_node_is_known_everything_waits() -> None:
    cluster = await FakeCluster().start()
    assert (await cluster.submit(slots=ResourceSlots({CPU: 10**9}))).created
    await cluster.kill()


async def test_a_node_seen_before_a_restart_counts() -> None:
    cluster = await FakeCluster(FakeAgent("a1", cores=8)).start()
    cluster.agents[AgentId("a1")].is_down = True
    await cluster.restart()
    with pytest.raises(InsufficientResources):
        await cluster.submit(slots=ResourceSlots({CPU: 9000}))
    assert (await cluster.submit(slots=ResourceSlots({CPU: 8000}))).created
    await cluster.kill()


async def test_two_hundred_at_once(cluster: FakeCluster) -> None:
    results = await asyncio.gather(*(cluster.submit() for _ in range(200)))
    assert len({result.session.id for result in results}) == 200
    page = await cluster.manager.sessions(OWNER, statuses=["PENDING"], limit=500, offset=0)
    assert page.total == 200


async def test_a_batch_waits_for_another_to_succeed(cluster: FakeCluster) -> None:
    first = await cluster.running("first", type=SessionType.BATCH, startup_command="true")
    second = (await cluster.submit("second", depends_on=(SessionId("first"),))).session
    assert second.spec.depends_on == (first.id,)
    assert not (await cluster.schedule()).placed
    agent = cluster.agents[first.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.finish_startup(first.main.id, 0)])
    await cluster.tell(agent, [agent.end(first.main.id)])
    assert (await cluster.schedule()).placed == (second.id,)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_failed_dependency_cancels_what_waits_for_it(cluster: FakeCluster, restart: bool) -> None:
    first = await cluster.running("first", type=SessionType.BATCH, startup_command="false")
    second = (await cluster.submit("second", depends_on=(first.id,))).session
    third = (await cluster.submit("third", depends_on=(second.id,))).session
    if restart:
        await cluster.restart()
    agent = cluster.agents[first.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(first.main.id, startup_exit_code=1)])
    for session in (second, third):
        ended = await cluster.get(session.id)
        assert (ended.status, ended.reason) == (Status.CANCELLED, Reason.DEPENDENCY_FAILED)
    assert "it depends on first" in (await cluster.get(second.id)).message


@pytest.mark.parametrize("restart", [False, True])
async def test_who_starts_anyway_starts_when_its_dependency_has_failed(cluster: FakeCluster, restart: bool) -> None:
    first = await cluster.running("first", type=SessionType.BATCH, startup_command="false")
    anyway: dict[str, Any] = {"depends_on": (first.id,), "dependency_failure": DependencyFailure.START_ANYWAY}
    second = (await cluster.submit("second", **anyway)).session
    assert not (await cluster.schedule()).placed
    agent = cluster.agents[first.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(first.main.id, startup_exit_code=1)])
    if restart:
        await cluster.restart()
    assert (await cluster.schedule()).placed == (second.id,)
    late = (await cluster.submit("late", **anyway)).session
    assert (await cluster.schedule()).placed == (late.id,), "it had failed before the session was submitted"


async def test_a_session_cannot_depend_on_itself(cluster: FakeCluster) -> None:
    """Nor can sessions depend on each other: what one depends on is there before it, and never changes."""
    own = SessionId("00000000-0000-4000-8000-000000000001")
    for me in (own, SessionId("me")):
        with pytest.raises(InvalidParameter, match="dependencies: you have no session"):
            await cluster.submit("me", id=own, depends_on=(me,))
    assert not cluster.store.records


async def test_a_span_of_time_is_the_same_request_a_moment_later(cluster: FakeCluster) -> None:
    """A client that repeats a call with ``starts_at=2h`` means the same session."""
    spec = cluster.spec("later", starts_at=cluster.clock.now + 7200)
    request = SubmitRequest(spec=spec, idempotency_key="k", starts_at_as_given="2h")
    first = await cluster.manager.submit(request)
    other = replace(request.spec, id=SessionId("other"), starts_at=cluster.clock.now + 7201)
    assert (await cluster.manager.submit(replace(request, spec=other))).session.id == first.session.id
    with pytest.raises(IdempotencyMismatch):
        await cluster.manager.submit(replace(request, spec=other, starts_at_as_given="3h"))


async def test_a_rehearsal_checks_what_a_submit_checks_and_takes_nothing_in(cluster: FakeCluster) -> None:
    first = (await cluster.submit("first")).session
    commits = len(cluster.store.commits)
    asked = SubmitRequest(spec=cluster.spec("second", depends_on=(SessionId("first"),), cluster_size=2))
    told = await cluster.manager.rehearse(asked)
    assert told.session is not None
    assert (told.session.waiting_for, len(told.session.kernel_ids)) == ((first.id,), 2)
    for spec in (
        cluster.spec("first"),
        cluster.spec(resource_group=ResourceGroupName("nowhere")),
        cluster.spec(slots=ResourceSlots([(CPU, 10**9), (MEM, 2**30)])),
        cluster.spec(depends_on=(SessionId("nobody"),)),
        cluster.spec(cluster_size=10**6),
    ):
        with pytest.raises(BackendError) as rehearsed:
            await cluster.manager.rehearse(SubmitRequest(spec=spec))
        with pytest.raises(BackendError) as submitted:
            await cluster.manager.submit(SubmitRequest(spec=spec))
        assert (type(rehearsed.value), rehearsed.value.message) == (type(submitted.value), submitted.value.message)
    reused = await cluster.manager.rehearse(SubmitRequest(spec=cluster.spec("first"), reuse_if_exists=True))
    assert reused.reused is not None
    assert reused.reused.id == first.id
    assert len(cluster.store.commits) == commits
    assert (await cluster.submit("second")).created
    await cluster.terminate(first)
    with pytest.raises(InvalidParameter, match="could never start"):
        await cluster.manager.rehearse(SubmitRequest(spec=cluster.spec(depends_on=(first.id,))))
    await cluster.check()


@pytest.mark.parametrize("restart", [False, True])
async def test_how_long_a_session_will_run_is_expected_from_its_owners_last_two(
    cluster: FakeCluster, restart: bool
) -> None:
    for seconds in (1000, 30, 50):
        session = await cluster.running()
        await cluster.pass_time(seconds, step_s=5)
        await cluster.terminate(session)
        agent = cluster.agents[session.main.agent_id or AgentId("")]
        await cluster.tell(agent, [agent.end(session.main.id)])
    if restart:
        await cluster.restart()
    waits = (await cluster.submit()).session
    other = (await cluster.submit(type=SessionType.BATCH, startup_command="true")).session
    world = await cluster.manager.changes(GROUP, "", 0)
    queued = {change.session.id: change.session for change in world.changes if isinstance(change, SessionQueued)}
    assert queued[waits.id].expected_s == pytest.approx(40, abs=1)
    assert queued[other.id].expected_s is None
    await cluster.schedule()
    world = await cluster.manager.changes(GROUP, "", 0)
    held = {change.kernel.session_id: change.kernel for change in world.changes if isinstance(change, KernelHeld)}
    assert held[waits.id].expected_s == pytest.approx(40, abs=1)


async def test_a_long_chain_of_dependents_is_cancelled(cluster: FakeCluster) -> None:
    root = (await cluster.submit()).session
    last = root
    for _ in range(300):
        last = (await cluster.submit(depends_on=(last.id,))).session
    await cluster.terminate(root)
    assert (await cluster.get(last.id)).status is Status.CANCELLED


async def test_a_dependency_that_failed_already_is_refused(cluster: FakeCluster) -> None:
    first = (await cluster.submit("first")).session
    await cluster.terminate(first)
    with pytest.raises(InvalidParameter, match="could never start"):
        await cluster.submit(depends_on=(first.id,))


async def test_an_interactive_dependency_is_met_when_it_is_ended(cluster: FakeCluster) -> None:
    first = await cluster.running("first")
    second = (await cluster.submit("second", depends_on=(first.id,))).session
    await cluster.terminate(first)
    agent = cluster.agents[first.main.agent_id or AgentId("")]
    await cluster.tell(agent, [agent.end(first.main.id)])
    assert (await cluster.schedule()).placed == (second.id,)


async def test_a_start_time_wakes_the_scheduler(cluster: FakeCluster) -> None:
    session = (await cluster.submit(starts_at=cluster.clock.now + 20)).session
    assert not (await cluster.schedule()).placed
    cluster.sokovan.wakes.clear()
    await cluster.pass_time(21)
    assert ("default", "a start time has come") in cluster.sokovan.wakes
    assert (await cluster.schedule()).placed == (session.id,)

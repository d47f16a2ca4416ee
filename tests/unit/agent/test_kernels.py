"""Kernels of an agent, made and ended on a fake engine that behaves and misbehaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.agent.agent import Agent
from actors.agent.backends.base import Life
from actors.agent.journal import Journal
from actors.agent.testing.fakes import CANNOT_START, ENGINE_AWAY
from actors.contracts import ExecuteRequest
from backendai_ray.core.errors import (
    InvalidParameter,
    KernelNotFound,
    KernelUnreachable,
    SessionEnded,
    SessionNotReady,
    StaleRoute,
)
from backendai_ray.core.execution import ExecMode
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from tests.unit.agent.conftest import AGENT, Bench, kernel_spec, route_to

UNKNOWN = KernelId("00000000-0000-0000-0000-000000000000")


async def start(agent: Agent, bench: Bench, *specs: KernelSpec) -> None:
    await agent.create_kernels(specs)
    for spec in specs:
        await bench.manager.until_status(spec.kernel_id, Status.RUNNING)


async def end(agent: Agent, bench: Bench, spec: KernelSpec, *, forced: bool = False) -> None:
    await agent.destroy_kernels([spec.kernel_id], Reason.USER_REQUESTED, forced=forced)
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)


def query(spec: KernelSpec, code: str = "1", *, epoch: int = 0) -> ExecuteRequest:
    return ExecuteRequest(route=route_to(spec, epoch=epoch), run_id="r", mode=ExecMode.QUERY, code=code)


async def test_from_order_to_end(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    assert bench.on_disk() == [spec.kernel_id]
    assert (await agent.execute(query(spec, "hello"))).console == (("stdout", "hello"),)
    await end(agent, bench, spec)
    fact = bench.manager.last(spec.kernel_id)
    assert fact is not None
    assert (fact.reason, fact.attempt, fact.log_tail) == ("user-requested", 1, b"what it printed")
    assert bench.manager.statuses(spec.kernel_id)[-2:] == [Status.RUNNING, Status.TERMINATED]
    assert bench.engine.lives == {}
    assert bench.on_disk() == [spec.kernel_id]
    await agent.acknowledge([spec.kernel_id])
    assert bench.on_disk() == []
    assert (await agent.inspect()).kernels == ()


async def test_why_it_ends_is_on_disk_before_the_kernel_hears_of_it(
    agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an agent that is killed right then takes the end for one of the kernel's own."""
    spec = kernel_spec()
    await start(agent, bench, spec)
    reasons: list[Reason | None] = []

    async def shutdown(grace_s: float | None = None) -> None:
        (record,) = Journal(bench.settings.sessions_dir, AGENT).load()
        reasons.append(record.stop and record.stop.reason)

    monkeypatch.setattr(bench.links[-1], "shutdown", shutdown)
    await end(agent, bench, spec)
    assert reasons == [Reason.USER_REQUESTED]


async def test_a_kernel_with_notice_may_end_by_itself(
    agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    noticed: list[float | None] = []

    async def shutdown(grace_s: float | None = None) -> None:
        noticed.append(grace_s)
        asyncio.get_running_loop().call_soon(bench.engine.end, bench.engine.running()[0])

    monkeypatch.setattr(bench.links[-1], "shutdown", shutdown)
    await agent.destroy_kernels([spec.kernel_id], Reason.PREEMPTED, grace_s=3600.0)
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    fact = bench.manager.last(spec.kernel_id)
    assert fact is not None
    assert (noticed, fact.reason, bench.backend.graces) == ([3600.0], "preempted", [0.0])


async def test_a_kernel_that_does_not_heed_its_notice_is_killed(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    await agent.destroy_kernels([spec.kernel_id], Reason.PREEMPTED, grace_s=0.02)
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert bench.backend.graces == [0.0]


async def test_force_cuts_a_notice_short(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    await agent.destroy_kernels([spec.kernel_id], Reason.PREEMPTED, grace_s=3600.0)
    await asyncio.sleep(0.02)
    await agent.destroy_kernels([spec.kernel_id], Reason.FORCED, forced=True)
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)


async def test_repeated_orders_make_nothing_twice(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await asyncio.gather(*(agent.create_kernels([spec]) for _ in range(5)))
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    await agent.create_kernels([spec])
    assert len(bench.engine.made) == 1
    for _ in range(3):
        await agent.destroy_kernels([spec.kernel_id], Reason.USER_REQUESTED)
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    await agent.create_kernels([spec])  # late: that attempt has been lived
    for _ in range(2):
        await agent.acknowledge([spec.kernel_id])
    assert len(bench.engine.made) == 1


async def test_devices_are_never_given_out_twice(agent: Agent, bench: Bench) -> None:
    first, second = kernel_spec(0), kernel_spec(0)
    await start(agent, bench, first)
    await agent.create_kernels([second])
    fact = await bench.manager.until_status(second.kernel_id, Status.TERMINATED)
    assert (fact.reason, fact.retryable) == ("start-failed", True)
    assert "has 0 free" in fact.message
    await end(agent, bench, first)
    third = kernel_spec(0)
    await start(agent, bench, third)


async def test_halves_of_a_core_fit_together(agent: Agent, bench: Bench) -> None:
    await start(agent, bench, kernel_spec(3, units=500), kernel_spec(3, units=500))


async def test_unknown_device_is_refused(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec(99)
    await agent.create_kernels([spec])
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert "99" in fact.message


async def test_destroy_while_the_image_is_pulled(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    bench.backend.pull_gate.clear()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.PULLING)
    await end(agent, bench, spec)
    bench.backend.pull_gate.set()
    assert bench.engine.made == []


async def test_destroy_while_the_container_is_made(agent: Agent, bench: Bench) -> None:
    """A launch cannot be called back: the end is told only after what it made is gone again."""
    spec = kernel_spec()
    bench.backend.gate.clear()
    await agent.create_kernels([spec])
    await bench.manager.until(lambda: bench.backend.most_at_once)
    await agent.destroy_kernels([spec.kernel_id], Reason.USER_REQUESTED, forced=True)
    assert Status.TERMINATED not in bench.manager.statuses(spec.kernel_id)
    bench.backend.gate.set()
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert (len(bench.engine.made), bench.engine.lives) == (1, {})


async def test_only_so_many_are_made_at_once(agent: Agent, bench: Bench) -> None:
    specs = [kernel_spec(core, units=250) for core in range(8) for _ in range(4)]
    await start(agent, bench, *specs)
    assert bench.backend.most_at_once <= bench.settings.agent.create_concurrency
    assert len(bench.engine.running()) == 32


async def test_start_that_fails(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    bench.backend.launch_errors = [CANNOT_START]
    await agent.create_kernels([spec])
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert (fact.reason, fact.message, fact.retryable) == ("start-failed", "it cannot be started", True)
    assert bench.engine.lives == {}


async def test_image_that_is_not_there(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec(image="nope")
    await agent.create_kernels([spec])
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert (fact.reason, fact.retryable) == ("image-not-found", False)


async def test_runner_that_never_answers(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    bench.connect_errors = [KernelUnreachable("no answer")]
    await agent.create_kernels([spec])
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert fact.reason == "start-failed"
    assert "it printed: what it printed" in fact.message
    assert bench.engine.lives == {}


async def test_a_bug_in_a_plug_in_ends_its_kernel_alone(agent: Agent, bench: Bench) -> None:
    bad, good = kernel_spec(0), kernel_spec(1)
    bench.backend.launch_errors = [ZeroDivisionError("a bug")]
    await agent.create_kernels([bad])
    fact = await bench.manager.until_status(bad.kernel_id, Status.TERMINATED)
    assert "a bug" in fact.message
    await start(agent, bench, good)


async def test_end_by_itself(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    bench.engine.end(bench.engine.made[0], exit_code=3)
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert (fact.reason, fact.exit_code) == ("self-terminated", 3)
    assert "exit code 3" in fact.message


async def test_killed_for_memory(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    bench.engine.end(bench.engine.made[0], exit_code=137, oom_killed=True)
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert (fact.reason, fact.message) == ("out-of-memory", "killed for memory: the limit is 512m")
    with pytest.raises(SessionEnded, match="killed for memory"):
        await agent.execute(query(spec))


async def test_who_executes_while_the_kernel_dies_hears_why(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    bench.engine.end(bench.engine.made[0], exit_code=137, oom_killed=True, tell=False)
    call = asyncio.create_task(agent.execute(query(spec)))
    await asyncio.sleep(0)
    for watcher in bench.engine.watchers:
        watcher(bench.engine.made[0])
    with pytest.raises((SessionEnded, KernelUnreachable)):
        await call
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)


async def test_container_that_somebody_removed(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    life = bench.engine.made[0]
    del bench.engine.lives[life]
    bench.engine.watchers[0](life)
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert fact.reason == "container-lost"


async def test_engine_that_is_away_while_a_kernel_is_ended(
    agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The devices stay held, and nobody is told of an end, until the container is gone for sure."""
    monkeypatch.setattr("actors.agent.kernel.FIRST_RETRY_S", 0.1)
    first, second = kernel_spec(0), kernel_spec(0)
    await start(agent, bench, first)
    bench.backend.stop_errors = [ENGINE_AWAY, ZeroDivisionError(), ENGINE_AWAY]
    await agent.destroy_kernels([first.kernel_id], Reason.USER_REQUESTED)
    await agent.create_kernels([second])
    await bench.manager.until_status(second.kernel_id, Status.TERMINATED)
    await bench.manager.until_status(first.kernel_id, Status.TERMINATED)
    order = [fact.kernel_id for fact in bench.manager.facts if fact.status is Status.TERMINATED]
    assert order == [second.kernel_id, first.kernel_id]


async def test_unknown_kernel_is_told_as_ended(agent: Agent, bench: Bench) -> None:
    await agent.destroy_kernels([UNKNOWN], Reason.FORCED, forced=True)
    fact = await bench.manager.until_status(UNKNOWN, Status.TERMINATED)
    assert (fact.reason, fact.attempt) == ("force-terminated", 0)


async def test_new_attempt_follows_the_old_one(agent: Agent, bench: Bench) -> None:
    first = kernel_spec()
    second = replace(first, attempt=2)
    await start(agent, bench, first)
    await agent.create_kernels([second])
    await bench.manager.until(lambda: any(f.attempt == 2 and f.status is Status.RUNNING for f in bench.manager.facts))
    assert [life.attempt for life in bench.engine.made] == [1, 2]
    assert [life.attempt for life in bench.engine.running()] == [2]
    await agent.create_kernels([first])  # late
    assert len(bench.engine.made) == 2


async def test_new_attempt_after_the_end_of_the_old_one(agent: Agent, bench: Bench) -> None:
    first = kernel_spec()
    await start(agent, bench, first)
    await end(agent, bench, first)
    await start(agent, bench, replace(first, attempt=2))


async def test_restart_keeps_devices_and_files(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    await agent.write_file(route_to(spec), "kept.txt", 0, b"kept", final=True)
    for _ in range(2):
        await agent.restart_kernels([spec.kernel_id], 1)
    (known,) = (await agent.inspect()).kernels
    assert known.status is not Status.RUNNING or len(bench.engine.made) == 2
    await bench.manager.until(lambda: bench.manager.statuses(spec.kernel_id).count(Status.RUNNING) == 2)
    assert [life.epoch for life in bench.engine.made] == [0, 1]
    assert len(bench.engine.running()) == 1
    with pytest.raises(StaleRoute):
        await agent.execute(query(spec))
    assert (await agent.execute(query(spec, epoch=1))).exit_code == 0
    assert [entry.name for entry in await agent.list_files(route_to(spec, epoch=1), ".")] == ["kept.txt"]


async def test_routes(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    await agent.update_route(spec.kernel_id, "renamed", 2)
    await agent.update_route(spec.kernel_id, "late", 1)
    for epoch in (0, 1):
        with pytest.raises(StaleRoute):
            await agent.execute(query(spec, epoch=epoch))
    await agent.execute(query(spec, epoch=2))
    with pytest.raises(KernelNotFound):
        await agent.execute(query(kernel_spec()))
    with pytest.raises(StaleRoute):
        await agent.execute(replace(query(spec), route=replace(route_to(spec, epoch=2), agent_id=AgentId("other"))))


async def test_not_ready_before_it_runs(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    bench.backend.gate.clear()
    await agent.create_kernels([spec])
    with pytest.raises(SessionNotReady):
        await agent.execute(query(spec))
    bench.backend.gate.set()
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)


async def test_odd_kernel_id_is_refused(agent: Agent, bench: Bench) -> None:
    with pytest.raises(InvalidParameter):
        await agent.create_kernels([kernel_spec(kernel_id=KernelId("../../etc"))])
    assert bench.on_disk() == []


async def test_output_is_handed_out_once_to_callers_that_do_not_count(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    first = await agent.execute(query(spec, "x"))
    assert first.console == (("stdout", "x"),)
    follow = replace(query(spec), mode=ExecMode.CONTINUE, code="")
    assert (await agent.execute(follow)).console == ()
    assert (await agent.execute(replace(follow, after_seq=0))).console == (("stdout", "x"),)
    assert (await agent.execute(query(spec, "x"))).console == (("stdout", "x"),)  # the answer was lost: asked again


async def test_startup_runs_once_and_its_end_is_told(agent: Agent, bench: Bench) -> None:
    spec = kernel_spec()
    await start(agent, bench, spec)
    for _ in range(3):
        await agent.run_startup(spec.kernel_id, "make", None)
    await bench.manager.until(lambda: (f := bench.manager.last(spec.kernel_id)) and f.startup_exit_code == 0)
    assert [link.runs for link in bench.links if link.runs] == [{"startup": "make"}]


async def test_unwritable_disk_refuses_the_order(agent: Agent, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kernel_spec()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("actors.agent.journal.Journal.begin", full)
        with pytest.raises(Exception, match="no room is left"):
            await agent.create_kernels([spec])
    assert (await agent.inspect()).kernels == ()
    await start(agent, bench, spec)


def test_life_names_are_unique() -> None:
    lives = [Life(kernel_id=UNKNOWN, attempt=a, epoch=e) for a in (1, 11) for e in (0, 1, 10)]
    assert len({str(life) for life in lives}) == 6

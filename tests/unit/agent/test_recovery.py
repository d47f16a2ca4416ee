"""What a restarted agent makes of what it finds, decided and carried out."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.backends.base import Found, Life
from actors.agent.journal import Journal, KernelRecord, Startup, StopOrder
from actors.agent.recovery import plan_recovery
from actors.agent.strays import SecondLook
from actors.contracts import ExecuteRequest
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.execution import ExecMode
from backendai_ray.core.ids import KernelId
from backendai_ray.core.sessions import Reason, Status
from tests.unit.agent.conftest import AGENT, Bench, kernel_spec, route_to

_IDS = [KernelId(f"00000000-0000-0000-0000-00000000000{n}") for n in range(4)]
_RECORDS = st.lists(
    st.builds(
        lambda kernel_id, status, epoch, is_stopped: KernelRecord(
            agent_id=AGENT,
            spec=kernel_spec(kernel_id=kernel_id),
            uid=0,
            status=status,
            epoch=epoch,
            stop=StopOrder(reason=Reason.USER_REQUESTED) if is_stopped else None,
        ),
        st.sampled_from(_IDS),
        st.sampled_from([Status.PREPARING, Status.CREATING, Status.RUNNING, Status.TERMINATING, Status.TERMINATED]),
        st.integers(0, 1),
        st.booleans(),
    ),
    unique_by=lambda record: record.spec.kernel_id,
)
_FOUND = st.lists(
    st.builds(
        lambda kernel_id, epoch, is_running: Found(
            life=Life(kernel_id=kernel_id, attempt=1, epoch=epoch), container_id="c", is_running=is_running
        ),
        st.sampled_from(_IDS),
        st.integers(0, 1),
        st.booleans(),
    ),
    unique_by=lambda found: found.life,
)


@given(_RECORDS, _FOUND)
def test_nothing_is_forgotten_and_nothing_is_done_twice(records: list[KernelRecord], found: list[Found]) -> None:
    plan = plan_recovery(records, found)
    judged = [*plan.ended, *plan.to_make, *plan.to_adopt]
    assert sorted(judged) == sorted(record.spec.kernel_id for record in records)
    present = {record.life for record in records if not record.has_ended}
    for one in found:
        places = [one in plan.leftovers, any(one in lives for lives in plan.strays.values()), one.life in present]
        assert places.count(True) == 1, (one, plan)
    for kernel_id in plan.to_make:  # what runs already is found again by its name when it is made again
        assert next(r for r in records if r.spec.kernel_id == kernel_id).status is not Status.RUNNING


async def test_running_kernels_are_adopted_with_their_devices(bench: Bench) -> None:
    agent = await bench.agent()
    spec = kernel_spec()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    bench.manager.facts.clear()
    agent = await bench.agent()
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    assert len(bench.engine.made) == 1
    rival = kernel_spec()
    await agent.create_kernels([rival])
    await bench.manager.until_status(rival.kernel_id, Status.TERMINATED)
    request = ExecuteRequest(route=route_to(spec), run_id="r", mode=ExecMode.QUERY, code="x")
    assert (await agent.execute(request)).exit_code == 0


async def test_end_that_nobody_saw(bench: Bench) -> None:
    agent = await bench.agent()
    specs = [kernel_spec(core) for core in range(3)]
    await agent.create_kernels(specs)
    for spec in specs:
        await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    await agent.close()
    lives = {life.kernel_id: life for life in bench.engine.made}
    bench.engine.end(lives[specs[0].kernel_id], exit_code=3)
    bench.engine.end(lives[specs[1].kernel_id], exit_code=137, oom_killed=True)
    del bench.engine.lives[lives[specs[2].kernel_id]]
    bench.agents.clear()
    await bench.agent()
    reasons = [(await bench.manager.until_status(s.kernel_id, Status.TERMINATED)).reason for s in specs]
    assert reasons == ["self-terminated", "out-of-memory", "container-lost"]


async def test_order_that_was_recorded_only(bench: Bench) -> None:
    """1. the order is written; 2. the agent is killed before it does anything; 3. it comes back and makes it."""
    bench.settings.sessions_dir.mkdir()
    spec = kernel_spec()
    Journal(bench.settings.sessions_dir, AGENT).begin([KernelRecord(agent_id=AGENT, spec=spec, uid=0)])
    await bench.agent()
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)


async def test_restart_that_was_recorded_only(bench: Bench) -> None:
    agent = await bench.agent()
    spec = kernel_spec()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    await agent.close()
    bench.agents.clear()
    journal = Journal(bench.settings.sessions_dir, AGENT)
    (record,) = journal.load()
    startup = Startup(command="x", timeout_s=None, exit_code=0)
    journal.write(
        KernelRecord(
            agent_id=AGENT,
            spec=spec,
            uid=record.uid,
            status=Status.PREPARING,
            restart_to=4,
            route_epoch=4,
            startup=startup,
        )
    )
    bench.manager.facts.clear()
    await bench.agent()
    fact = await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    assert fact.startup_exit_code is None
    assert [life.epoch for life in bench.engine.running()] == [4]


async def test_end_is_told_again_until_it_is_acknowledged(bench: Bench) -> None:
    agent = await bench.agent()
    spec = kernel_spec()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    bench.manager.error = StoreUnavailable()
    await agent.destroy_kernels([spec.kernel_id], Reason.USER_REQUESTED)
    await bench.manager.until(lambda: bench.manager.refused >= 2)
    agent = await bench.agent()
    bench.manager.error = None
    fact = await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    assert fact.reason == "user-requested"
    await agent.acknowledge([spec.kernel_id])
    assert bench.on_disk() == []
    bench.manager.facts.clear()
    await bench.agent()
    assert bench.manager.facts == []


async def test_stray_is_reported_and_ended_on_demand(bench: Bench) -> None:
    life = Life(kernel_id=_IDS[0], attempt=2, epoch=0)
    bench.engine.lives[life] = Found(life=life, container_id="c", is_running=True, session_id="s")
    agent = await bench.agent()
    (fact,) = (await agent.inspect()).kernels
    assert (fact.kernel_id, fact.session_id, fact.status) == (_IDS[0], "s", Status.RUNNING)
    await agent.destroy_kernels([_IDS[0]], Reason.FORCED)
    fact = await bench.manager.until_status(_IDS[0], Status.TERMINATED)
    assert bench.engine.lives == {}
    assert (await agent.inspect()).kernels == ()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"agent_id": 1}', b"\xff\xfe"])
async def test_damaged_record_harms_nobody_else(bench: Bench, damage: bytes) -> None:
    agent = await bench.agent()
    specs = [kernel_spec(core) for core in range(2)]
    await agent.create_kernels(specs)
    for spec in specs:
        await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    await agent.close()
    bench.agents.clear()
    (bench.settings.sessions_dir / specs[0].kernel_id / "kernel.json").write_bytes(damage)
    agent = await bench.agent()
    found = {fact.kernel_id: fact for fact in (await agent.inspect()).kernels}
    assert found[specs[0].kernel_id].message == "found on the node without a record"
    assert found[specs[1].kernel_id].allocation == specs[1].allocation


async def test_half_made_folder_is_swept(bench: Bench) -> None:
    for kernel_id in _IDS[1:3]:
        (bench.settings.sessions_dir / kernel_id / "work").mkdir(parents=True)
    os.utime(bench.settings.sessions_dir / _IDS[1], (1, 1))
    (bench.settings.sessions_dir / "not-a-kernel").mkdir()
    await bench.agent()
    assert bench.on_disk() == [_IDS[2], "not-a-kernel"]


async def test_a_record_that_was_lost_is_made_again_by_the_order(bench: Bench) -> None:
    agent = await bench.agent()
    spec = kernel_spec()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    await agent.close()
    bench.agents.clear()
    shutil.rmtree(bench.settings.sessions_dir / spec.kernel_id)
    agent = await bench.agent()
    (fact,) = (await agent.inspect()).kernels
    assert (fact.status, fact.has_record) == (Status.RUNNING, False)
    bench.manager.facts.clear()
    await agent.create_kernels([spec])
    fact = await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    assert (fact.has_record, fact.allocation) == (True, spec.allocation)
    assert len(bench.engine.made) == 1
    rival = kernel_spec()
    await agent.create_kernels([rival])  # what it holds is known again
    await bench.manager.until_status(rival.kernel_id, Status.TERMINATED)


async def test_lives_that_come_late(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow engine does what a killed agent asked it for when the kernel has ended and is long forgotten."""
    monkeypatch.setattr("actors.agent.agent.SWEEP_INTERVAL_S", 0.02)
    agent = await bench.agent()
    known, forgotten = kernel_spec(), _IDS[0]
    await agent.create_kernels([known])
    await bench.manager.until_status(known.kernel_id, Status.RUNNING)
    old = Life(kernel_id=known.kernel_id, attempt=0, epoch=0)
    late = Life(kernel_id=forgotten, attempt=1, epoch=0)
    for life in (old, late):
        bench.engine.lives[life] = Found(life=life, container_id="c", is_running=True, session_id="s")
    # One that a record has moved on from is nobody's; of the other, the Manager must say so.
    fact = await bench.manager.until_status(forgotten, Status.RUNNING)
    assert not fact.has_record
    await bench.manager.until(lambda: old not in bench.engine.lives)
    assert late in bench.engine.lives
    await agent.destroy_kernels([forgotten], Reason.AGENT_LOST)
    await bench.manager.until_status(forgotten, Status.TERMINATED)
    assert [life.kernel_id for life in bench.engine.lives] == [known.kernel_id]


def test_only_what_stays_is_acted_on() -> None:
    look = SecondLook()
    one, two = (Found(life=Life(kernel_id=k, attempt=1, epoch=0), container_id="c", is_running=True) for k in _IDS[:2])
    assert look.confirmed([one]) == []
    assert look.confirmed([two]) == []
    assert look.confirmed([two, one]) == [two]
    assert look.confirmed([]) == []


async def test_a_notice_survives_the_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A kernel has its notice. 2. The agent is killed in the middle of it. 3. The next one gives the whole grace."""
    agent = await bench.agent()
    spec = kernel_spec()
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    noticed = asyncio.Event()

    async def shutdown(grace_s: float | None = None) -> None:
        noticed.set()

    monkeypatch.setattr(bench.links[-1], "shutdown", shutdown)
    await agent.destroy_kernels([spec.kernel_id], Reason.PREEMPTED, grace_s=3600.0)
    await asyncio.wait_for(noticed.wait(), 10)
    await bench.agent()
    await bench.manager.until_status(spec.kernel_id, Status.TERMINATED)
    fact = bench.manager.last(spec.kernel_id)
    assert fact is not None
    assert (fact.reason, bench.backend.graces) == ("preempted", [3600.0])

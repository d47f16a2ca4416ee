"""Preemptions while a trace is replayed: they are carried out, counted, and come to an end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import AgentId
from backendai_ray.core.slots import ResourceSlots
from policies.backfill import BackfillPolicy
from policies.drf import DrfPolicy
from policies.fifo import FifoPolicy
from policies.lifo import LifoPolicy
from policies.selection import Concentrated
from policies.simulator.engine import History, simulate
from policies.simulator.faults import Faults, Outage
from policies.simulator.jobs import Job, make_job
from policies.simulator.metrics import summarise
from policies.testing import make_node

NODES = [make_node("n0", cpu=4, gpus=4), make_node("n1", cpu=4, gpus=4)]


def job(name: str, at: float, duration: float, gpus: int = 4, *, priority: int = 10, owner: str = "A") -> Job:
    slots = ResourceSlots.parse({"cpu": 1, "cuda.device": gpus})
    return make_job(name, slots, submitted_at=at, duration_s=duration, owner=owner, priority=priority)


def replay(*jobs: Job, **preemption: Any) -> History:
    options = {"scope": "group", "min_runtime_s": 0, **preemption}
    return simulate(NODES[:1], jobs, FifoPolicy(selection=Concentrated(), preemption=options), checked=True)


def runs(history: History) -> list[tuple[str, float, float, bool]]:
    return [(str(run.session_id), run.started_at, run.ended_at, run.is_preempted) for run in history.runs]


def test_it_runs_again_after_the_more_important_one() -> None:
    history = replay(job("low", 0, 10), job("high", 4, 5, priority=50), job("other", 1, 2))
    assert runs(history) == [
        ("low", 0, 4, True),
        ("high", 4, 9, False),
        ("low", 9, 19, False),
        ("other", 19, 21, False),
    ]
    figures = summarise(history)
    assert (figures.preemptions, figures.lost_runs, figures.failed) == (1, 0, 0)
    assert figures.wasted == pytest.approx(4 / 21)


def test_terminated_for_good() -> None:
    history = replay(job("low", 0, 10), job("high", 4, 5, priority=50), mode="terminate")
    assert runs(history) == [("low", 0, 4, True), ("high", 4, 9, False)]
    assert summarise(history).failed == 1


@pytest.mark.parametrize(("duration", "low_ends"), [(10, 7), (6, 6)])
def test_the_grace(duration: float, low_ends: float) -> None:
    """Who is done within the grace is done."""
    history = replay(job("low", 0, duration), job("high", 4, 5, priority=50), grace_s=3)
    assert runs(history)[:2] == [("low", 0, low_ends, duration > 6), ("high", low_ends, low_ends + 5, False)]


def test_the_minimum_run_time_is_waited_for() -> None:
    history = replay(job("low", 0, 100), job("high", 4, 5, priority=50), min_runtime_s=30)
    assert runs(history)[0] == ("low", 0, 30, True)


_jobs = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(0, 15),
        st.integers(1, 4),
        st.sampled_from([0, 10, 20, 30]),
        st.sampled_from("AB"),
    ),
    max_size=9,
).map(lambda rows: [job(f"j{i}", at, run, n, priority=p, owner=who) for i, (at, run, n, p, who) in enumerate(rows)])


@settings(deadline=None, max_examples=40)
@given(
    _jobs,
    st.sampled_from([FifoPolicy, LifoPolicy, DrfPolicy, BackfillPolicy]),
    st.sampled_from([0, 3]),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.booleans(),
)
def test_every_job_is_done_once(
    jobs: list[Job], policy: Any, least: float, grace: float | None, fails: bool, moves: bool
) -> None:
    options = {"scope": "group", "min_runtime_s": least, "grace_s": grace}
    faults = Faults([Outage(5.0, AgentId("n0"), 9.0)] if fails else [])
    moving = {"max_moves": 2, "min_runtime_s": least} if moves else None
    preempting = policy(selection=Concentrated(), preemption=options, consolidation=moving)
    history = simulate(NODES, jobs, preempting, checked=True, faults=faults)
    done = [run.session_id for run in history.runs if not run.is_lost]
    assert sorted(done) == sorted(one.session.id for one in jobs)
    highest = {one.session.id for one in jobs if one.session.priority == max(j.session.priority for j in jobs)}
    preempted = [run for run in history.runs if run.is_preempted]
    assert moves or not highest & {run.session_id for run in preempted}
    assert all(run.ended_at - run.started_at >= least for run in preempted)

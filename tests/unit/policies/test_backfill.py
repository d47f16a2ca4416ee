"""Backfill: what may go ahead of the head of the queue, and that the head never waits any longer for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import (
    PendingSession,
    Placement,
    Plan,
    Refusal,
    RefusalCode,
    RunningKernel,
    SchedulingPolicy,
    Snapshot,
)
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots
from policies.backfill import BackfillPolicy
from policies.fifo import FifoPolicy
from policies.fragmentation import Fragmentation
from policies.queueing import in_bands
from policies.selection import Concentrated
from policies.simulator.engine import History, simulate
from policies.simulator.jobs import Job, make_job
from policies.simulator.metrics import summarise
from policies.testing import NOW, PolicyConformance, make_node, make_session, make_snapshot, run_kernel, run_kernels

NODE = make_node("n0", cpu=4)


class TestBackfill(PolicyConformance):
    work_conserving = True
    max_examples = 50

    def make_policy(self) -> BackfillPolicy:
        return BackfillPolicy(selection=Concentrated())


class TestBackfillWithFragmentation(PolicyConformance):
    work_conserving = True
    max_examples = 20

    def make_policy(self) -> BackfillPolicy:
        return BackfillPolicy(selection=Fragmentation())


def limited(kernel: RunningKernel, left_s: float) -> RunningKernel:
    """Return a kernel that is half through its time."""
    return replace(kernel, placed_at=NOW - left_s, time_limit_s=2 * left_s)


def decide(pending: list[PendingSession], *, left_s: float | None = 100) -> Plan:
    """Decide on a node of which 3 of 4 cores are taken for a while."""
    kernel = run_kernel(NODE, "k", cpu=3, mem="1g")
    running = [kernel if left_s is None else limited(kernel, left_s)]
    return BackfillPolicy(selection=Concentrated()).decide(make_snapshot([NODE], pending, running))


def placed(plan: Plan) -> list[str]:
    return [placement.session_id for placement in plan.placements]


HEAD = make_session("head", cpu=4, mem="1g")


def test_who_has_ended_in_time_goes_ahead() -> None:
    assert placed(decide([HEAD, make_session("in-time", time_limit_s=100)])) == ["in-time"]


@pytest.mark.parametrize("limit_s", [100.5, None])
def test_who_would_still_run_then_waits(limit_s: float | None) -> None:
    plan = decide([HEAD, make_session("too-long", time_limit_s=limit_s)])
    assert placed(plan) == []
    assert [refusal.code for refusal in plan.refusals] == [RefusalCode.NOT_ENOUGH, RefusalCode.BEHIND_HEAD]


def test_who_fits_beside_the_head_goes_ahead_however_long_and_only_as_many_as_fit() -> None:
    head = make_session("head", cpu=3, mem="1g")
    assert placed(decide([head, make_session("a"), make_session("b")])) == ["a"]


def test_those_that_go_ahead_together_leave_room_for_the_head() -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=4)]
    running = [
        *(limited(k, 100) for k in run_kernels(nodes[0], {"a": {"cpu": 2}, "b": {"cpu": 1}})),
        limited(run_kernel(nodes[1], "c", cpu=3), 100),
    ]
    head = make_session("head", cpu=4, mem="1g")
    pending = [head, *(make_session(f"s{i}", cpu=1, mem="1g") for i in range(2))]
    plan = BackfillPolicy(selection=Concentrated()).decide(make_snapshot(nodes, pending, running))
    assert placed(plan) == ["s0"], "one node must be empty when the head's time comes"


def test_where_the_heads_time_cannot_be_known_nothing_goes_ahead() -> None:
    assert placed(decide([HEAD, make_session("short", time_limit_s=1)], left_s=None)) == []


def test_an_explanation_says_why_it_may_not_go_ahead() -> None:
    pending = [HEAD, make_session("too-long", time_limit_s=500)]
    snapshot = make_snapshot([NODE], pending, [limited(run_kernel(NODE, "k", cpu=3, mem="1g"), 100)])
    outcome = BackfillPolicy(selection=Concentrated()).explain(snapshot, SessionId("too-long"))
    assert isinstance(outcome, Refusal)
    assert outcome.message.endswith(
        "there is room for it now, but it might not end before the session that goes first can start, "
        "and would take its room"
    )


def test_it_knows_preemption_only() -> None:
    with pytest.raises(InvalidParameter, match="backfill knows only the options"):
        BackfillPolicy(selection=Concentrated(), strict=True)


_jobs = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 20), st.integers(0, 10), st.integers(1, 4), st.integers(1, 3)),
    min_size=1,
    max_size=12,
).map(lambda rows: [_job(i, *row) for i, row in enumerate(sorted(rows))])


def _job(number: int, at: int, run: int, spare: int, gpus: int, size: int) -> Job:
    return make_job(
        f"j{number:02}",
        ResourceSlots.parse({"cuda.device": gpus}),
        submitted_at=at,
        duration_s=run,
        time_limit_s=run + spare,
        size=size,
        mode=ClusterMode.MULTI_NODE,
    )


class _Watched:
    """A policy whose head is looked at: when it is first refused, when could it have started at the latest?"""

    name = "watched"

    def __init__(self) -> None:
        self.policy = BackfillPolicy(selection=Concentrated())
        self.promised: dict[SessionId, float] = {}

    def decide(self, snapshot: Snapshot) -> Plan:
        plan = self.policy.decide(snapshot)
        waiting = {refusal.session_id: refusal.code for refusal in plan.refusals}
        own = {RefusalCode.TOO_LARGE, RefusalCode.NOT_YET}
        heads = [s for s in in_bands(snapshot.pending) if waiting.get(s.id, RefusalCode.TOO_LARGE) not in own]
        if heads and heads[0].id not in self.promised:
            self.promised[heads[0].id] = _latest_start(snapshot, plan, heads[0])
        return plan

    def explain(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        return self.policy.explain(snapshot, session_id)


def _latest_start(snapshot: Snapshot, plan: Plan, head: PendingSession) -> float:
    """Return when the head starts if nothing goes ahead and every session runs until its limit."""
    before = [s for s in snapshot.pending if s.submitted_at <= head.submitted_at and s.id < head.id]
    started = {placement.session_id: placement for placement in plan.placements}
    free = {
        node.agent_id: 4000 - sum(a.slots().amount("cuda.device") for a in node.held.values())
        for node in snapshot.nodes
    }
    ends: list[tuple[float, str, int]] = [
        (k.placed_at + k.time_limit_s, k.agent_id, k.allocation.slots()["cuda.device"]) for k in snapshot.running
    ]
    for session in before:
        for kernel in started[session.id].kernels if session.id in started else ():
            units = kernel.allocation.slots()["cuda.device"]
            free[kernel.agent_id] -= units
            ends.append((snapshot.now + session.time_limit_s, kernel.agent_id, units))
    for at, agent_id, units in sorted(ends):
        free[agent_id] += units
        if sum(room // head.slots["cuda.device"] for room in free.values()) >= len(head.kernel_ids):
            return at
    raise AssertionError("the head never fits")


NODES = [make_node("n0", gpus=4), make_node("n1", gpus=4)]


def replay(policy: SchedulingPolicy, jobs: list[Job]) -> History:
    return simulate(NODES, jobs, policy, checked=True)


@settings(deadline=None, max_examples=100)
@given(_jobs)
def test_the_head_never_starts_later_than_if_nothing_had_gone_ahead(jobs: list[Job]) -> None:
    """Its start is bounded when it comes to the head, from who runs then, by a count that knows no backfill."""
    watched = _Watched()
    history = replay(watched, jobs)
    for session_id, latest in watched.promised.items():
        assert history.started_at[session_id] <= latest


@settings(deadline=None, max_examples=100)
@given(_jobs)
def test_the_same_jobs_start_as_under_fifo(jobs: list[Job]) -> None:
    mine, fifo = (
        replay(BackfillPolicy(selection=Concentrated()), jobs),
        replay(FifoPolicy(selection=Concentrated()), jobs),
    )
    assert set(mine.started_at) == set(fifo.started_at)


def test_gaps_are_filled() -> None:
    jobs = [_job(0, 0, 10, 0, 4, 1), _job(1, 1, 10, 0, 4, 2), *(_job(i, 2, 3, 0, 1, 1) for i in range(2, 6))]
    fifo = summarise(replay(FifoPolicy(selection=Concentrated()), jobs))
    mine = summarise(replay(BackfillPolicy(selection=Concentrated()), jobs))
    assert (fifo.makespan_s, mine.makespan_s) == (23, 20)
    assert mine.wait_mean_s == pytest.approx(9 / 6)


def test_what_runs_on_a_node_that_has_gone_makes_no_room() -> None:
    """Found by a seed of `python -m bench faults`: the policy raised, and fifo decided in its place."""
    gone = make_node("n1", cpu=4)
    running = [
        replace(run_kernel(NODE, "a", cpu=3), placed_at=NOW, time_limit_s=100.0),
        replace(run_kernel(gone, "b", cpu=3), placed_at=NOW, time_limit_s=10.0),
    ]
    waiting = [make_session("head", cpu=4), make_session("short", cpu=1, time_limit_s=50.0)]
    snapshot = make_snapshot([NODE], waiting, running)
    plan = BackfillPolicy(selection=Concentrated()).decide(snapshot)
    assert [placement.session_id for placement in plan.placements] == ["short"]

"""What is to come: the policy asked about the future."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from backendai_ray.core.explanations import StartBasis, StartEstimate
from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import Plan, Preemption, RunningKernel, Snapshot
from policies.backfill import BackfillPolicy
from policies.drf import DrfPolicy
from policies.fifo import FifoPolicy
from policies.outlook import Outlook, never_as_things_are
from policies.queueing import QueueingPolicy
from policies.selection import Concentrated
from policies.testing import NOW, make_node, make_session, make_snapshot, run_kernel, snapshots

POLICIES: list[type[QueueingPolicy]] = [FifoPolicy, DrfPolicy, BackfillPolicy]


def fifo() -> FifoPolicy:
    return FifoPolicy(selection=Concentrated())


def limited(kernel: RunningKernel, ends_in_s: float) -> RunningKernel:
    return replace(kernel, placed_at=NOW - 100, time_limit_s=100 + ends_in_s)


def start_of(snapshot: Snapshot, name: str = "s") -> StartEstimate:
    return Outlook(snapshot, fifo().decide).start_of(SessionId(name))


def test_room_now() -> None:
    estimate = start_of(make_snapshot([make_node("n")], [make_session("s")]))
    assert (estimate.basis, estimate.at) == (StartBasis.NOW, NOW)


def test_when_time_limits_make_room() -> None:
    """1. Both nodes are full for 60 s and 600 s. 2. Who is first gets the first one, and holds it for 200 s."""
    nodes = [make_node("a"), make_node("b")]
    running = [
        limited(run_kernel(node, f"k{node.agent_id}", cpu=4, mem="1g"), ends_in_s)
        for node, ends_in_s in zip(nodes, (60, 600), strict=True)
    ]
    first = make_session("first", cpu=3, mem="1g", time_limit_s=200)
    second = make_session("second", cpu=3, mem="1g")
    snapshot = make_snapshot(nodes, [first, second], running)
    assert [start_of(snapshot, name).at for name in ("first", "second")] == [NOW + 60, NOW + 260]
    assert start_of(snapshot, "second").basis is StartBasis.TIME_LIMITS


def test_when_a_start_time_comes() -> None:
    estimate = start_of(make_snapshot([make_node("n")], [make_session("s", starts_at=NOW + 50)]))
    assert (estimate.basis, estimate.at) == (StartBasis.START_TIME, NOW + 50)


def test_a_dependency_that_runs_ends_at_its_limit() -> None:
    node = make_node("n")
    before = limited(run_kernel(node, "k", cpu=1, mem="1g"), 70)
    waits = make_session("s", waiting_for=(str(before.session_id),))
    assert start_of(make_snapshot([node], [waits], [before])).at == NOW + 70
    unknown = start_of(make_snapshot([node], [make_session("s", waiting_for=("elsewhere",))], [before]))
    assert (unknown.basis, unknown.at) == (StartBasis.UNKNOWN, None)
    assert "elsewhere" in unknown.message


@pytest.mark.parametrize("limit", [None, 1e15])
def test_sessions_without_a_limit_are_named(limit: float | None) -> None:
    node = make_node("n")
    running = replace(run_kernel(node, "k", cpu=4, mem="1g"), time_limit_s=limit)
    estimate = start_of(make_snapshot([node], [make_session("s")], [running]))
    assert (estimate.basis, estimate.at) == (StartBasis.UNKNOWN, None)
    assert "session-k" in estimate.message


@pytest.mark.parametrize(("ran_s", "ends_in_s"), [(10, 90), (100, 100), (150, 50), (399, 1)])
def test_a_session_without_a_limit_runs_as_long_as_expected_and_then_twice_as_long(ran_s: int, ends_in_s: int) -> None:
    node = make_node("n")
    running = replace(run_kernel(node, "k", cpu=4, mem="1g"), placed_at=NOW - ran_s, expected_s=100.0)
    estimate = start_of(make_snapshot([node], [make_session("s")], [running]))
    assert (estimate.basis, estimate.at) == (StartBasis.PREDICTED, NOW + ends_in_s)
    first = replace(make_session("first", cpu=4, mem="1g"), expected_s=0.0)
    estimate = start_of(make_snapshot([node], [first, make_session("s", cpu=4, mem="1g")], [running]))
    assert (estimate.basis, estimate.at) == (StartBasis.PREDICTED, NOW + ends_in_s + 1)


def test_what_is_being_ended_is_gone_soon() -> None:
    node = make_node("n")
    running = replace(run_kernel(node, "k", cpu=4, mem="1g"), ending=True)
    estimate = start_of(make_snapshot([node], [make_session("s")], [running]))
    assert (estimate.basis, estimate.at) == (StartBasis.ENDING, NOW)


def test_who_makes_room_for_itself_starts_when_its_victims_are_gone() -> None:
    """1. An important session ends another one, which waits again. 2. That one goes on when the first has ended."""
    node = make_node("n")
    restarts = replace(make_session("session-k", cpu=4, mem="1g", submitted_at=1.0), kernel_ids=(KernelId("k"),))
    victim = replace(run_kernel(node, "k", cpu=4, mem="1g"), restarts_as=restarts)
    important = make_session("s", cpu=4, mem="1g", priority=20, submitted_at=2.0, time_limit_s=30)
    policy = FifoPolicy(selection=Concentrated(), preemption={"scope": "group", "mode": "reschedule"})
    later = make_session("later", cpu=4, mem="1g", submitted_at=3.0, time_limit_s=30)
    outlook = Outlook(make_snapshot([node], [important, later], [victim]), policy.decide)
    estimate = outlook.start_of(SessionId("s"))
    assert (estimate.basis, estimate.at) == (StartBasis.ENDING, NOW)
    assert outlook.start_of(SessionId("later")).basis is StartBasis.UNKNOWN, "behind the one that waits again"


def test_no_end_makes_a_node_larger() -> None:
    policy = fifo()
    snapshot = make_snapshot([make_node("n")], [make_session("s", cpu=64, mem="1g")])
    refusal = policy.decide(snapshot).refusals[0]
    never = never_as_things_are(refusal.code, refusal.message)
    assert never is not None
    assert (never.basis, never.at) == (StartBasis.UNKNOWN, None)
    assert start_of(snapshot).message == "there is no place for it even when all that runs has ended"


def test_who_gives_up_goes_on_later_where_it_stopped() -> None:
    node = make_node("n")
    queue = [make_session(f"s{i}", cpu=4, mem="1g", time_limit_s=10) for i in range(20)]
    outlook = Outlook(make_snapshot([node], queue), fifo().decide)
    asked = iter([False] * 5 + [True] * 100)
    early = outlook.start_of(SessionId("s19"), lambda: next(asked))
    assert (early.basis, early.at, early.not_before) == (StartBasis.UNKNOWN, None, NOW + 50)
    assert outlook.start_of(SessionId("s19")).at == NOW + 190
    assert outlook.start_of(SessionId("s3")).at == NOW + 30
    assert Outlook(make_snapshot([node], queue), fifo().decide, max_passes=5).start_of(SessionId("s19")).not_before


def test_a_policy_that_preempts_for_ever_comes_to_an_end() -> None:
    node = make_node("n")
    victim = replace(run_kernel(node, "k", cpu=4, mem="1g"), restarts_as=make_session("session-k", cpu=4, mem="1g"))

    def decide(snapshot: Snapshot) -> Plan:
        if snapshot.running:
            return Plan(preemptions=(Preemption(victim.session_id, SessionId("s"), "", reschedule=True),))
        return fifo().decide(replace(snapshot, pending=[one for one in snapshot.pending if one.id != "s"]))

    snapshot = make_snapshot([node], [make_session("s", cpu=4, mem="1g", priority=20)], [victim])
    outlook = Outlook(snapshot, decide, max_passes=50)
    assert outlook.start_of(SessionId("s")).basis is StartBasis.UNKNOWN


@pytest.mark.parametrize("make", POLICIES)
def test_the_outlook_agrees_with_the_decision_and_does_not_depend_on_who_asks_first(
    make: type[QueueingPolicy],
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(snapshots())
    def check(snapshot: Snapshot) -> None:
        placed = {one.session_id for one in make(selection=Concentrated()).decide(snapshot).placements}
        forth = Outlook(snapshot, make(selection=Concentrated()).decide)
        back = Outlook(snapshot, make(selection=Concentrated()).decide)
        names = [session.id for session in snapshot.pending]
        found = {name: forth.start_of(name) for name in names}
        assert {name: back.start_of(name) for name in reversed(names)} == found
        assert {name for name, estimate in found.items() if estimate.basis is StartBasis.NOW} >= placed
        for session in snapshot.pending:
            at = found[session.id].at
            assert (at is None) == (found[session.id].basis is StartBasis.UNKNOWN)
            assert found[session.id].message
            if at is not None:
                assert at >= max(snapshot.now, session.starts_at or 0.0)

    check()

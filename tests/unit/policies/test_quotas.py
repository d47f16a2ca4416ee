"""Quotas within a pass, under every policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import AgentId
from backendai_ray.core.quotas import Limits, Quota, Scope, ScopeKind, Use, breach_of
from backendai_ray.core.scheduling import Plan, Refusal, RefusalCode, Snapshot
from backendai_ray.plugins import SCHEDULING_POLICIES, installed, load_policy
from policies.checking import problems_of
from policies.invariants import room_left_idle
from policies.quotas import QuotaBook, asked_by
from policies.testing import carried_out, make_node, make_session, make_snapshot, run_kernel, snapshots

POLICIES = sorted(installed(SCHEDULING_POLICIES))
USER = Scope(ScopeKind.USER, "user")
KEYS = [Scope(ScopeKind.KEYPAIR, key) for key in ("AK", "BK", "CK")]


def with_quotas(snapshot: Snapshot, *quotas: Quota) -> Snapshot:
    return replace(snapshot, quotas=quotas)


def placed(plan: Plan) -> list[str]:
    return [placement.session_id for placement in plan.placements]


def refused(plan: Plan) -> dict[str, RefusalCode]:
    return {refusal.session_id: refusal.code for refusal in plan.refusals}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_pass_has_placed_counts_at_once_and_others_are_not_held_up(policy: str) -> None:
    node = make_node("n0", cpu=8)
    sessions = [make_session(f"s{n}", submitted_at=n, cpu=2, access_key="AK" if n < 3 else "BK") for n in range(4)]
    quota = Quota(KEYS[0], Limits(slots={"cpu": 4000}))
    plan = load_policy(policy, "concentrated").decide(with_quotas(make_snapshot([node], sessions), quota))
    assert len(placed(plan)) == 3
    assert "s3" in placed(plan)
    assert list(refused(plan).values()) == [RefusalCode.QUOTA]
    assert "the quota of keypair AK allows 4, and 4 are in use" in plan.refusals[0].message


@pytest.mark.parametrize(
    ("limits", "elsewhere", "said"),
    [
        (Limits(slots={"cpu": 3000}), Use(), "asks for cpu 2; the quota of user user allows 3, and 2 are in use"),
        (Limits(slots={"cpu": 5000}), Use({"cpu": 2000}, 1), "allows 5, and 4 are in use"),
        (Limits(sessions=2), Use({}, 1), "allows 2 sessions at a time, and 2 hold resources"),
        (Limits(slots={"mem": 2**30}), Use(), "asks for mem 2g, and the quota of user user allows 1g in all"),
        (Limits(slots={"cpu": 6000}, sessions=3), Use({"cpu": 2000}, 1), ""),
        (Limits(slots={"cuda.device": 0}), Use(), ""),
    ],
)
def test_what_runs_here_and_elsewhere_counts(limits: Limits, elsewhere: Use, said: str) -> None:
    node = make_node("n0", cpu=8)
    running = replace(run_kernel(node, "k", cpu=2), user="user")
    gang = make_session("gang", size=2, cpu=1, mem="1g")
    snapshot = with_quotas(make_snapshot([node], [gang], [running]), Quota(USER, limits, elsewhere))
    outcome = load_policy("fifo", "concentrated").explain(snapshot, gang.id)
    if not said:
        assert not isinstance(outcome, Refusal)
        return
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.QUOTA
    assert said in outcome.message


def test_a_plan_over_a_quota_is_one_that_cannot_be_carried_out() -> None:
    node = make_node("n0", cpu=8)
    snapshot = make_snapshot([node], [make_session(f"s{n}", submitted_at=n, cpu=2) for n in range(3)])
    plan = load_policy("fifo", "concentrated").decide(snapshot)
    assert problems_of(snapshot, plan) == ()
    [problem] = problems_of(with_quotas(snapshot, Quota(USER, Limits(sessions=2))), plan)
    assert "session s2: the quota of user user allows 2 sessions" in problem


def test_what_goes_ahead_leaves_the_head_its_quota() -> None:
    """1. The head waits for the whole of n0, and its quota will just do. 2. One of the same owner that never ends may
    not go ahead; one that ends in time may. 3. Neither is in the way of somebody else."""
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=2)]
    running = [replace(run_kernel(nodes[0], "k", cpu=1), time_limit_s=60.0, placed_at=0.0)]
    head = make_session("head", cpu=4, mem="1g", submitted_at=0)
    own = make_session("own", cpu=1, mem="1g", submitted_at=1, designated=("n1",))
    short = make_session("short", cpu=1, mem="1g", submitted_at=2, time_limit_s=1.0, designated=("n1",))
    other = make_session("other", cpu=1, mem="1g", submitted_at=3, access_key="BK", designated=("n1",))
    snapshot = make_snapshot(nodes, [head, own, short, other], running, now=1.0)
    backfill = load_policy("backfill", "concentrated")
    plan = backfill.decide(with_quotas(snapshot, Quota(KEYS[0], Limits(slots={"cpu": 5000}))))
    assert placed(plan) == ["short", "other"]
    assert refused(plan) == {"head": RefusalCode.NOT_ENOUGH, "own": RefusalCode.BEHIND_HEAD}
    assert placed(backfill.decide(snapshot)) == ["own", "short"]


_limits = st.builds(
    Limits,
    slots=st.dictionaries(
        st.sampled_from(["cpu", "mem", "cuda.device"]), st.sampled_from([0, 1000, 3000, 2**31]), max_size=2
    ),
    sessions=st.sampled_from([None, None, 0, 1, 2]),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_plan_exceeds_a_quota_and_who_is_refused_for_one_is_over_it(policy: str) -> None:
    """Worlds of every kind with any quotas: plans keep them, and a refusal for a quota is true at the end."""

    @settings(max_examples=40, deadline=None)
    @given(snapshots(), st.lists(_limits, min_size=3, max_size=3))
    def check(snapshot: Snapshot, limits: list[Limits]) -> None:
        quotas = [Quota(key, limit) for key, limit in zip(KEYS, limits, strict=True) if limit]
        snapshot = with_quotas(snapshot, *quotas)
        plan = load_policy(policy, "concentrated").decide(snapshot)
        assert problems_of(snapshot, plan) == ()
        waiting = {session.id: session for session in snapshot.pending}
        book = QuotaBook(quotas, snapshot.running)
        for placement in plan.placements:
            assert book.refusal(waiting[placement.session_id]) is None
            book.take(waiting[placement.session_id])
        for refusal in plan.refusals:
            if refusal.code is RefusalCode.QUOTA:
                assert book.refusal(waiting[refusal.session_id]) is not None

    check()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_history_never_exceeds_a_quota_and_leaves_idle_only_what_a_reason_says(policy: str) -> None:
    """Plans are carried out and sessions end in turn, until all is at rest: then whoever waits still could never start,
    or is over a quota by himself."""

    @settings(max_examples=20, deadline=None)
    @given(snapshots(max_nodes=3, max_pending=7), st.lists(_limits, min_size=3, max_size=3))
    def check(snapshot: Snapshot, limits: list[Limits]) -> None:
        quotas = [Quota(key, limit) for key, limit in zip(KEYS, limits, strict=True) if limit]
        decider, snapshot = load_policy(policy, "concentrated"), with_quotas(snapshot, *quotas)
        while True:
            plan = decider.decide(snapshot)
            after = carried_out(snapshot, plan)
            assert [excess for quota in quotas for excess in _excess(quota, snapshot, after)] == []
            assert room_left_idle(after, plan, strict=True) == ()
            if not plan.placements and not after.running:
                break
            oldest = after.running[0].session_id if after.running else None
            still = [kernel for kernel in after.running if kernel.session_id != oldest]
            snapshot = with_quotas(make_snapshot(list(after.nodes), list(after.pending), still), *quotas)
        for session in snapshot.pending:
            outcome = decider.explain(snapshot, session.id)
            assert isinstance(outcome, Refusal)
            over = breach_of(session, asked_by(session), {q.scope: q.limits for q in quotas}, lambda _: Use())
            if outcome.code is RefusalCode.QUOTA:
                assert over is not None

    check()


def _excess(quota: Quota, before: Snapshot, after: Snapshot) -> list[str]:
    """Return where a scope holds more than its quota allows and more than it did, counted by hand."""
    held: list[dict[str, int]] = []
    for snapshot in (before, after):
        kernels = [kernel for kernel in snapshot.running if kernel.access_key == quota.scope.name]
        sums = {"sessions": len({kernel.session_id for kernel in kernels})}
        for kernel in kernels:
            for slot, _, units in kernel.allocation.parts:
                sums[slot] = sums.get(slot, 0) + units
        held.append(sums)
    most = {**quota.limits.slots, **({} if quota.limits.sessions is None else {"sessions": quota.limits.sessions})}
    return [what for what, limit in most.items() if held[1].get(what, 0) > max(limit, held[0].get(what, 0))]


def test_the_message_is_that_of_the_narrowest_scope() -> None:
    session = make_session("s", cpu=2)
    limits = {KEYS[0]: Limits(sessions=0), USER: Limits(sessions=0)}
    breach = breach_of(session, asked_by(session), limits, lambda _: Use())
    assert breach is not None
    assert breach.scope == KEYS[0]


def test_a_session_over_its_quota_never_becomes_the_head() -> None:
    node = make_node("n0", cpu=2)
    over = make_session("over", cpu=2, submitted_at=0)
    fits = make_session("fits", cpu=2, submitted_at=1, access_key="BK")
    quota = Quota(KEYS[0], Limits(slots={"cpu": 1000}))
    plan = load_policy("fifo", "concentrated").decide(with_quotas(make_snapshot([node], [over, fits]), quota))
    assert placed(plan) == ["fits"]
    assert plan.placements[0].kernels[0].agent_id == AgentId("n0")

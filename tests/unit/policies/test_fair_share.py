"""Fair shares over time: the order, and what it promises to those who share for long."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.scheduling import PendingSession, Snapshot
from backendai_ray.core.slots import CPU, ResourceSlots
from backendai_ray.core.usage import DAY_S, HOUR_S, Account, Bucket, UsageLedger, charges_for
from backendai_ray.plugins import load_policy
from policies.fair_share import FairSharePolicy
from policies.fair_tree import FairTreeQueue, Standings
from policies.queueing import in_bands
from policies.selection import Concentrated
from policies.simulator.engine import History, simulate
from policies.simulator.jobs import Job, make_job
from policies.testing import NOW, PolicyConformance, make_node, make_session, make_snapshot, run_kernel, snapshots

ONE_CORE = ResourceSlots({CPU: 1000})


class TestFairShare(PolicyConformance):
    work_conserving, max_examples = True, 60

    def make_policy(self) -> FairSharePolicy:
        return FairSharePolicy(selection=Concentrated(), half_life_h=24, weights={"default/other": 3})


class TestFairShareNotStrict(PolicyConformance):
    work_conserving, strict, max_examples = True, False, 20

    def make_policy(self) -> FairSharePolicy:
        return FairSharePolicy(selection=Concentrated(), strict=False)


def make_policy(**options: object) -> FairSharePolicy:
    policy = load_policy("fair-share", "concentrated", options)
    assert isinstance(policy, FairSharePolicy)
    return policy


def waiting(name: str, account: str, *, submitted_at: float = 0.0, **more: object) -> PendingSession:
    domain, project, user = account.split("/")
    session = make_session(name, submitted_at=submitted_at, access_key=user, cpu=1, mem="256m", **more)  # type: ignore[arg-type]
    return replace(session, domain=domain, project=project, user=user)


def used(account: str, core_hours: float, *, hours_ago: int = 1) -> tuple[Account, tuple[Bucket, ...]]:
    domain, project, user = account.split("/")
    start = NOW // HOUR_S * HOUR_S - hours_ago * HOUR_S
    return (domain, project, user), (Bucket(start, HOUR_S, {CPU: core_hours * HOUR_S * 1000}),)


def placed(policy: FairSharePolicy, snapshot: Snapshot) -> list[str]:
    return [placement.session_id for placement in policy.decide(snapshot).placements]


# ── the order ──


def test_who_has_used_less_goes_first() -> None:
    pending = [waiting("a", "d/p/alice"), waiting("b", "d/p/bob", submitted_at=1)]
    snapshot = make_snapshot([make_node("n0", cpu=1)], pending)
    assert placed(make_policy(), snapshot) == ["a"]
    assert placed(make_policy(), replace(snapshot, usage=dict([used("d/p/alice", 5)]))) == ["b"]


def test_what_was_used_long_ago_counts_less() -> None:
    pending = [waiting("a", "d/p/alice"), waiting("b", "d/p/bob", submitted_at=1)]
    snapshot = make_snapshot([make_node("n0", cpu=1)], pending)
    usage = dict([used("d/p/alice", 40, hours_ago=100), used("d/p/bob", 5)])
    assert placed(make_policy(half_life_h=10), replace(snapshot, usage=usage)) == ["a"]
    assert placed(make_policy(half_life_h=672), replace(snapshot, usage=usage)) == ["b"]


def test_a_weight_is_what_a_branch_is_entitled_to() -> None:
    pending = [waiting("a", "d/p/alice"), waiting("b", "d/p/bob", submitted_at=1)]
    snapshot = make_snapshot([make_node("n0", cpu=1)], pending)
    usage = dict([used("d/p/alice", 15), used("d/p/bob", 10)])
    assert placed(make_policy(), replace(snapshot, usage=usage)) == ["b"]
    assert placed(make_policy(weights={"d/p/alice": 2}), replace(snapshot, usage=usage)) == ["a"]


def test_siblings_are_compared_from_the_root_down() -> None:
    """1. carol has used most of all users. 2. Her domain has used less than the other one. 3. So she goes first."""
    pending = [waiting("a", "big/p/alice"), waiting("c", "small/p/carol", submitted_at=1)]
    snapshot = make_snapshot([make_node("n0", cpu=1)], pending)
    usage = dict([used("big/p/alice", 1), used("big/q/bob", 30), used("small/p/carol", 20)])
    assert placed(make_policy(), replace(snapshot, usage=usage)) == ["c"]
    assert placed(make_policy(weights={"big": 10}), replace(snapshot, usage=usage)) == ["a"]
    same_domain = [waiting("a", "big/p/alice"), waiting("b", "big/q/bob")]
    other = make_snapshot([make_node("n0", cpu=1)], same_domain)
    assert placed(make_policy(weights={"big/q": 50}), replace(other, usage=usage)) == ["b"]


def test_what_the_pass_has_placed_counts_at_once() -> None:
    pending = [waiting(f"a{n}", "d/p/alice", submitted_at=n) for n in range(6)]
    pending += [waiting(f"b{n}", "d/p/bob", submitted_at=10 + n) for n in range(6)]
    pending += [waiting(f"c{n}", "d/q/carol", submitted_at=20 + n) for n in range(6)]
    names = placed(make_policy(), make_snapshot([make_node("n0", cpu=8)], pending))
    assert Counter(name[0] for name in names) == {"a": 2, "b": 2, "c": 4}


def test_what_runs_counts_and_the_more_the_longer_it_has_run() -> None:
    node = make_node("n0", cpu=4)
    running = replace(run_kernel(node, "k", cpu=1), domain="d", project="p", user="alice", placed_at=NOW)
    pending = [waiting("a", "d/p/alice"), *(waiting(f"b{n}", "d/p/bob", submitted_at=n + 1) for n in range(4))]
    assert placed(make_policy(half_life_h=24), make_snapshot([node], pending, [running])) == ["b0", "a", "b1"]
    long_since = replace(running, placed_at=NOW - 50 * DAY_S)
    assert placed(make_policy(half_life_h=24), make_snapshot([node], pending, [long_since])) == ["b0", "b1", "b2"]


def test_priority_comes_before_fairness() -> None:
    pending = [waiting("a", "d/p/alice", priority=20), waiting("b", "d/p/bob")]
    snapshot = replace(make_snapshot([make_node("n0", cpu=1)], in_bands(pending)), usage=dict([used("d/p/alice", 99)]))
    assert placed(make_policy(), snapshot) == ["a"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"half_life_h": 0.5}, "half_life_h"),
        ({"half_life_h": 1000}, "half_life_h"),
        ({"half_life_h": float("nan")}, "half_life_h"),
        ({"half_life_h": "7d"}, "half_life_h"),
        ({"half_life_h": True}, "half_life_h"),
        ({"weights": [1]}, "weights"),
        ({"weights": {"d": 0}}, "weights"),
        ({"weights": {"d": "much"}}, "weights"),
        ({"weights": {"d//u": 1}}, "weights"),
        ({"weights": {"d/p/u/k": 1}}, "weights"),
        ({"strict": 1}, "strict"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"^options\.{field}: "):
        make_policy(**options)


@settings(max_examples=40, deadline=None)
@given(snapshots(max_nodes=0), st.randoms(use_true_random=False))
def test_the_queue_is_the_lowest_standing_at_every_step(snapshot: Snapshot, shuffled: random.Random) -> None:
    """Against a queue that looks at everybody anew at every step; whatever is placed meanwhile."""
    standings = Standings({CPU: 10_000}, {("default", "other"): 2.0})
    reference = Standings({CPU: 10_000}, {("default", "other"): 2.0})
    left = in_bands(snapshot.pending)
    queue = FairTreeQueue(left, standings, entry=0.5)
    left = list(left)
    for session in queue:
        band = [s for s in left if s.priority == left[0].priority]
        expected = min(band, key=lambda s: _place_in_line(s, band, reference))
        assert session is expected
        left.remove(session)
        if shuffled.random() < 0.6:
            queue.placed(session)
            account = (session.domain, session.project, session.user)
            reference.add(account, session.slots, len(session.kernel_ids) * 0.5)
    assert left == []


def _place_in_line(session: PendingSession, band: list[PendingSession], standings: Standings) -> tuple[object, ...]:
    """Standing and oldest session of every branch on the way to a session; then its own place."""
    path = (session.domain, session.project, session.user)
    place: list[object] = []
    for depth in (1, 2, 3):
        branch = [s for s in band if (s.domain, s.project, s.user)[:depth] == path[:depth]]
        first = min(branch, key=lambda s: _below(s, branch, standings, depth))
        place += [standings.of(path[:depth]), first.submitted_at, first.id]
    return (*place, band.index(session))


def _below(session: PendingSession, band: list[PendingSession], standings: Standings, depth: int) -> tuple[object, ...]:
    if depth == 3:
        return (band.index(session),)
    path = (session.domain, session.project, session.user)
    below = [s for s in band if (s.domain, s.project, s.user)[: depth + 1] == path[: depth + 1]]
    first = min(below, key=lambda s: _below(s, below, standings, depth + 1))
    return (standings.of(path[: depth + 1]), first.submitted_at, first.id, _below(session, below, standings, depth + 1))


# ── sharing for long ──


def steady(account: str, number: int, *, hours: float, every_h: float = 0.0, cores: int = 1) -> list[Job]:
    domain, project, user = account.split("/")
    return [
        make_job(
            f"{account}-{index:04}",
            ResourceSlots({CPU: 1000 * cores}),
            submitted_at=index * every_h * HOUR_S,
            duration_s=hours * HOUR_S,
            domain=domain,
            project=project,
            owner=user,
        )
        for index in range(number)
    ]


def core_hours(history: History, until_h: float) -> Counter[str]:
    """What each user's jobs used until then."""
    sums: Counter[str] = Counter()
    for job in history.jobs:
        started = history.started_at.get(job.session.id, float("inf"))
        seconds = max(0.0, min(started + job.duration_s, until_h * HOUR_S) - started)
        sums[job.session.user] += round(seconds / HOUR_S * job.session.slots.amount(CPU) / 1000)
    return sums


def test_in_a_full_cluster_use_comes_to_be_in_proportion_to_the_weights() -> None:
    jobs = [job for user in ("a", "b", "c") for job in steady(f"d/p/{user}", 240, hours=1)]
    policy = make_policy(weights={"d/p/a": 3, "d/p/b": 2}, half_life_h=24)
    history = simulate([make_node("n0", cpu=12)], jobs, policy, checked=True)
    assert core_hours(history, 20) == {"a": 120, "b": 80, "c": 40}


def test_weights_hold_at_every_level_of_the_tree() -> None:
    jobs = [*steady("d/p/a", 200, hours=1), *steady("d/q/b", 200, hours=1), *steady("d/q/c", 200, hours=1)]
    policy = make_policy(weights={"d/p": 2, "d/q/b": 3}, half_life_h=24)
    sums = core_hours(simulate([make_node("n0", cpu=12)], jobs, policy), 20)
    assert sums == {"a": 160, "b": 60, "c": 20}


def test_jobs_of_different_length_get_the_same_use_in_the_end() -> None:
    """``drf`` gives both half of the cluster at any moment only when both always wait; so does this, and over time."""
    jobs = [*steady("d/p/long", 40, hours=10), *steady("d/p/short", 400, hours=1)]
    sums = core_hours(simulate([make_node("n0", cpu=8)], jobs, make_policy(half_life_h=24)), 60)
    assert 0.85 < sums["short"] / sums["long"] < 1.18


def test_who_was_away_goes_first_and_starves_nobody() -> None:
    """1. a has the cluster alone for two days. 2. b comes and gets what comes free. 3. a gets some again before b is
    through: b has caught up with what is not forgotten."""
    alone, late = steady("d/p/a", 600, hours=1), steady("d/p/b", 600, hours=1)
    late = [replace(job, session=replace(job.session, submitted_at=48.0 * HOUR_S)) for job in late]
    history = simulate([make_node("n0", cpu=8)], [*alone, *late], make_policy(half_life_h=24))
    before, day_after, later = (core_hours(history, hours) for hours in (48, 60, 96))
    assert before == {"a": 384, "b": 0}
    assert (day_after["a"] - before["a"], day_after["b"]) == (0, 96)
    assert later["a"] - day_after["a"] > 80


def test_a_large_job_of_one_who_has_used_much_starts_all_the_same() -> None:
    """Small jobs of another keep coming for days and would always fit."""
    jobs = steady("d/p/small", 320, hours=1, every_h=0.1)
    jobs += [*steady("d/p/large", 3, hours=5, cores=8)]
    history = simulate([make_node("n0", cpu=8)], jobs, make_policy(half_life_h=24))
    assert len(history.finished_at) == len(jobs)
    starts = sorted(history.started_at[job.session.id] for job in jobs if job.session.user == "large")
    assert starts[-1] < 24 * HOUR_S
    in_use = sum(core_hours(history, 24).values()) / (24 * 8)
    assert in_use > 0.9


def test_the_same_world_seen_in_another_order_gives_the_same_plan() -> None:
    """A policy that was restarted is told the same world in another order."""
    node = make_node("n0", cpu=6)
    usage = UsageLedger()
    for number, user in enumerate("abcabc"):
        usage.add(
            charges_for(("d", "p", user), {CPU: 700 + 100 * (number % 3)}, NOW - 9000 - number, NOW - 100 * number)
        )
    pending = [waiting(f"{user}{n}", f"d/p/{user}", submitted_at=n) for n in range(4) for user in "abc"]
    snapshot = replace(make_snapshot([node], pending), usage=usage.view())
    backwards = replace(snapshot, usage=dict(reversed(usage.view().items())))
    assert make_policy().decide(snapshot) == make_policy().decide(backwards)

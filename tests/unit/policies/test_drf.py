"""Dominant resource fairness: the order, and what it promises to those who share."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import AccessKey
from backendai_ray.core.scheduling import PendingSession, Plan
from backendai_ray.core.slots import CPU, MEM, ResourceSlots
from policies.drf import DominantShares, DrfPolicy
from policies.queueing import in_bands
from policies.selection import Concentrated
from policies.testing import GIB, PolicyConformance, make_node, make_session, make_snapshot, run_kernel

_CPUS, _MEM_GIB = 18, 36


class TestDrf(PolicyConformance):
    work_conserving = True
    max_examples = 50

    def make_policy(self) -> DrfPolicy:
        return DrfPolicy(selection=Concentrated())


class TestDrfNotStrict(PolicyConformance):
    work_conserving, strict = True, False
    max_examples = 20

    def make_policy(self) -> DrfPolicy:
        return DrfPolicy(selection=Concentrated(), strict=False)


def decide(pending: list[PendingSession], *, cpu: int = _CPUS, mem_gib: int = _MEM_GIB) -> Plan:
    return DrfPolicy(selection=Concentrated()).decide(
        make_snapshot([make_node("n0", cpu=cpu, mem_gib=mem_gib)], pending)
    )


def starts_by_owner(pending: list[PendingSession], plan: Plan) -> dict[str, int]:
    owner = {session.id: str(session.access_key) for session in pending}
    counts = dict.fromkeys(owner.values(), 0)
    for placement in plan.placements:
        counts[owner[placement.session_id]] += 1
    return counts


def many(owner: str, number: int, **amounts: str | int) -> list[PendingSession]:
    return [make_session(f"{owner}{i:02}", access_key=owner, submitted_at=i, **amounts) for i in range(number)]


def test_the_published_example() -> None:
    """9 cores and 18 GB; A asks for <1, 4 GB>, B for <3, 1 GB> each: three of A's run and two of B's."""
    pending = [*many("A", 9, cpu=1, mem="4g"), *many("B", 9, cpu=3, mem="1g")]
    assert starts_by_owner(pending, decide(pending, cpu=9, mem_gib=18)) == {"A": 3, "B": 2}


def test_one_who_floods_the_queue_does_not_hold_up_another() -> None:
    pending = [*many("A", 20, cpu=1, mem="1g"), *many("B", 2, cpu=1, mem="1g")]
    assert starts_by_owner(pending, decide(pending, cpu=6)) == {"A": 4, "B": 2}


def test_what_runs_counts() -> None:
    node = make_node("n0", cpu=4)
    pending = [*many("AK", 2, cpu=1, mem="1g"), *many("B", 2, cpu=1, mem="1g")]
    snapshot = make_snapshot([node], pending, [run_kernel(node, "k", cpu=2, mem="1g")])
    plan = DrfPolicy(selection=Concentrated()).decide(snapshot)
    assert [placement.session_id for placement in plan.placements] == ["B00", "B01"]


def test_priority_comes_before_fairness() -> None:
    pending = [*many("A", 2, cpu=1, mem="1g", priority=20), *many("B", 2, cpu=1, mem="1g")]
    plan = decide(pending)
    assert [placement.session_id for placement in plan.placements] == ["A00", "A01", "B00", "B01"]


def test_a_slot_whose_nodes_have_left_counts_as_all_of_it() -> None:
    shares = DominantShares({CPU: 4000}, [])
    shares.add(AccessKey("A"), ResourceSlots({"cuda.device": 1000}))
    shares.add(AccessKey("B"), ResourceSlots({CPU: 1000}), times=2)
    assert (shares.of(AccessKey("A")), shares.of(AccessKey("B")), shares.of(AccessKey("C"))) == (1.0, 0.5, 0.0)


_kinds = st.tuples(st.integers(1, 4), st.integers(1, 8))
"""Cores and GiB of each session of one owner."""


def _always_more(kinds: list[tuple[int, int]]) -> list[PendingSession]:
    return [
        session for i, (cpu, gib) in enumerate(kinds) for session in many(f"U{i}", _CPUS + 1, cpu=cpu, mem=f"{gib}g")
    ]


def _dominant(kind: tuple[int, int]) -> float:
    return max(kind[0] / _CPUS, kind[1] / _MEM_GIB)


@settings(deadline=None)
@given(st.lists(_kinds, min_size=2, max_size=4))
def test_sharing_is_no_worse_than_a_part_of_ones_own(kinds: list[tuple[int, int]]) -> None:
    """Sharing incentive, as far as whole sessions allow: an equal part of the cluster would hold no more of mine."""
    pending = _always_more(kinds)
    counts = starts_by_owner(pending, decide(pending))
    largest = max(_dominant(kind) for kind in kinds)
    for i, kind in enumerate(kinds):
        assert (counts[f"U{i}"] + 1) * _dominant(kind) >= 1 / len(kinds) - largest * (1 + 1 / len(kinds))


@settings(deadline=None)
@given(st.lists(_kinds, min_size=2, max_size=4))
def test_nobody_would_rather_have_what_another_got(kinds: list[tuple[int, int]]) -> None:
    """Envy-freeness, up to one session of each: another's bundle less one of its sessions holds no more of mine."""
    pending = _always_more(kinds)
    counts = starts_by_owner(pending, decide(pending))
    for i, (cpu, gib) in enumerate(kinds):
        for j, (other_cpu, other_gib) in enumerate(kinds):
            theirs = max(0, counts[f"U{j}"] - 1)
            mine_from_theirs = min(theirs * other_cpu // cpu, theirs * other_gib // gib)
            assert counts[f"U{i}"] >= mine_from_theirs, (i, j, counts)


@given(st.permutations(range(8)))
def test_the_order_of_one_owner_is_kept(order: list[int]) -> None:
    pending = [
        make_session(f"s{i}", access_key="AB"[i % 2], submitted_at=i, priority=order[i] % 3, cpu=1, mem="1g")
        for i in range(8)
    ]
    plan = decide(pending)
    for owner in "AB":
        mine = [s.id for s in in_bands(pending) if s.access_key == owner]
        assert [p.session_id for p in plan.placements if p.session_id in mine] == mine


def test_memory_is_measured_in_bytes_everywhere() -> None:
    shares = DominantShares({CPU: 4000, MEM: 8 * GIB}, [])
    shares.add(AccessKey("A"), ResourceSlots({CPU: 1000, MEM: 4 * GIB}))
    assert shares.of(AccessKey("A")) == 0.5

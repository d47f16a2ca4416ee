"""The order in which fifo starts sessions, and what it says to those that wait."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.scheduling import PendingSession, Plan, Refusal, RefusalCode, Snapshot
from backendai_ray.core.sessions import ClusterMode
from policies.columns import RoomCache
from policies.fifo import FifoPolicy
from policies.queue_pass import QueuePass
from policies.queueing import in_bands
from policies.reasons import OWN_REASONS
from policies.selection import Concentrated, Dispersed
from policies.testing import (
    NOW,
    PolicyConformance,
    carried_out,
    make_node,
    make_session,
    make_snapshot,
    run_kernel,
    run_kernels,
    snapshots,
)

MULTI = ClusterMode.MULTI_NODE


class TestFifoConcentrated(PolicyConformance):
    work_conserving = True

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Concentrated())


class TestFifoDispersed(PolicyConformance):
    work_conserving = True
    max_examples = 30

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Dispersed())


class TestFifoNotStrict(PolicyConformance):
    work_conserving, strict = True, False
    max_examples = 40

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Concentrated(), strict=False)


def decide(snapshot: Snapshot, *, strict: bool = True) -> Plan:
    return FifoPolicy(selection=Concentrated(), strict=strict).decide(snapshot)


def explain(snapshot: Snapshot, session: str) -> Refusal:
    outcome = FifoPolicy(selection=Concentrated()).explain(snapshot, SessionId(session))
    assert isinstance(outcome, Refusal)
    return outcome


def placed(plan: Plan) -> list[str]:
    return [placement.session_id for placement in plan.placements]


def codes(plan: Plan) -> dict[str, RefusalCode]:
    return {refusal.session_id: refusal.code for refusal in plan.refusals}


def test_two_hundred_sessions_start_in_order_as_room_comes_free() -> None:
    snapshot = make_snapshot([make_node("n0", cpu=8)], [make_session(f"s{i:03}", cpu=1, mem="1g") for i in range(200)])
    started: list[str] = []
    for _ in range(25):
        plan = decide(snapshot)
        assert len(plan.placements) == 8
        started += placed(plan)
        snapshot = make_snapshot([make_node("n0", cpu=8)], list(carried_out(snapshot, plan).pending))
    assert started == [f"s{i:03}" for i in range(200)]


def test_nothing_overtakes_the_head() -> None:
    node = make_node("n0", cpu=4)
    snapshot = make_snapshot(
        [node],
        [make_session("big", cpu=4, mem="1g"), make_session("small", cpu=1, mem="1g")],
        [run_kernel(node, "k", cpu=1, mem="1g")],
    )
    plan = decide(snapshot)
    assert placed(plan) == []
    assert codes(plan) == {"big": RefusalCode.NOT_ENOUGH, "small": RefusalCode.BEHIND_HEAD}
    assert placed(decide(snapshot, strict=False)) == ["small"]


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (make_session("odd", cpu=64, mem="1g"), RefusalCode.TOO_LARGE),
        (make_session("odd", cpu=1, mem="1g", cuda_device=1), RefusalCode.TOO_LARGE),
        (make_session("odd", cpu=10, mem="1g", size=2), RefusalCode.TOO_LARGE),
        (make_session("odd", cpu=3, mem="1g", size=8, mode=MULTI), RefusalCode.TOO_LARGE),
        (make_session("odd", cpu=3, mem="1g", size=7, mode=MULTI), RefusalCode.UNSCHEDULABLE),
        (make_session("odd", starts_at=NOW + 5), RefusalCode.NOT_YET),
        (make_session("odd", waiting_for=("first",)), RefusalCode.DEPENDENCIES),
        (make_session("odd", architecture="aarch64"), RefusalCode.ARCHITECTURE),
        (make_session("odd", designated=("n7",)), RefusalCode.NOT_DESIGNATED),
        (make_session("odd", designated=("drained",)), RefusalCode.UNSCHEDULABLE),
        (make_session("odd", cpu=16, mem="1g"), RefusalCode.UNSCHEDULABLE),
    ],
)
def test_who_cannot_start_for_a_reason_of_its_own_holds_up_nobody(session: PendingSession, code: RefusalCode) -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=4), make_node("drained", cpu=16, unschedulable="is drained")]
    plan = decide(make_snapshot(nodes, [session, make_session("next")]))
    assert placed(plan) == ["next"]
    assert codes(plan) == {"odd": code}


def test_a_gang_starts_whole_or_not_at_all() -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=4)]
    busy = [run_kernel(nodes[1], "k", cpu=2, mem="1g")]
    gang = make_session("gang", cpu=3, mem="1g", size=2, mode=MULTI)
    plan = decide(make_snapshot(nodes, [gang, make_session("next")], busy))
    assert placed(plan) == []
    assert plan.refusals[0].code is RefusalCode.GANG
    assert plan.refusals[0].message == ("1 of its 2 kernels would fit now; a gang starts as a whole or not at all")
    assert placed(decide(make_snapshot(nodes, [gang, make_session("next")], busy), strict=False)) == ["next"]


def test_a_multi_node_gang_spreads_when_it_must() -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=4)]
    plan = decide(make_snapshot(nodes, [make_session("gang", cpu=3, mem="1g", size=2, mode=MULTI)]))
    assert [kernel.agent_id for kernel in plan.placements[0].kernels] == ["n0", "n1"]
    assert [kernel.kernel_id for kernel in plan.placements[0].kernels] == ["gang-0", "gang-1"]


def test_a_single_node_gang_takes_a_node_with_room_for_all() -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=8)]
    plan = decide(make_snapshot(nodes, [make_session("gang", cpu=3, mem="1g", size=2)]))
    assert {kernel.agent_id for kernel in plan.placements[0].kernels} == {"n1"}


def test_the_node_of_an_earlier_failure_comes_last_but_before_waiting() -> None:
    nodes = [make_node("n0"), make_node("n1")]
    avoiding = make_session("s", avoid=("n0",))
    assert decide(make_snapshot(nodes, [avoiding])).placements[0].kernels[0].agent_id == "n1"
    assert decide(make_snapshot(nodes[:1], [avoiding])).placements[0].kernels[0].agent_id == "n0"


def test_a_session_whose_old_kernels_still_hold_devices_waits_for_their_end() -> None:
    node = make_node("n0")
    plan = decide(make_snapshot([node], [make_session("s"), make_session("t")], [run_kernel(node, "s-0", cpu=1)]))
    assert placed(plan) == ["t"]
    assert codes(plan) == {"s": RefusalCode.NOT_YET}


def test_the_reason_names_the_closest_node_and_what_is_missing_there() -> None:
    nodes = [make_node("n0", cpu=8), make_node("n1", cpu=8)]
    busy = [run_kernel(nodes[0], "a", cpu=7, mem="1g"), run_kernel(nodes[1], "b", cpu=6, mem="1g")]
    refusal = decide(make_snapshot(nodes, [make_session("s", cpu=4, mem="2g")], busy)).refusals[0]
    assert refusal.message == "needs cpu 4, mem 2g; the closest node n1 is short by cpu 2"


def test_pieces_are_a_reason_of_their_own() -> None:
    node = make_node("n0", shares=2)
    busy = run_kernels(node, {"a": {"cuda_shares": "0.6"}, "b": {"cuda_shares": "0.6"}})
    refusal = decide(make_snapshot([node], [make_session("s", cuda_shares="0.6")], busy)).refusals[0]
    assert refusal.code is RefusalCode.FRAGMENTED
    assert "free only in pieces" in refusal.message


def test_too_large_names_the_largest_node() -> None:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=6)]
    refusal = decide(make_snapshot(nodes, [make_session("s", cpu=8, mem="1g")])).refusals[0]
    assert refusal.message == "needs cpu 8, mem 1g; the largest node n1 is short by cpu 2 even when empty"


def test_an_explanation_has_a_reason_for_every_node_that_refuses() -> None:
    nodes = [
        make_node("arm", architecture="aarch64"),
        make_node("busy", cpu=4),
        make_node("drained", unschedulable="is being drained"),
        make_node("small", cpu=1),
    ]
    busy = [run_kernel(nodes[1], "k", cpu=3, mem="1g")]
    refusal = explain(make_snapshot(nodes, [make_session("s", cpu=2, mem="1g", architecture="x86_64")], busy), "s")
    assert {one.agent_id: (one.code, one.message) for one in refusal.nodes} == {
        "arm": (RefusalCode.ARCHITECTURE, "has architecture aarch64, not x86_64"),
        "busy": (RefusalCode.NOT_ENOUGH, "has cpu 1, mem 15g free, short by cpu 1"),
        "drained": (RefusalCode.UNSCHEDULABLE, "is being drained"),
        "small": (RefusalCode.TOO_LARGE, "has cpu 1, mem 16g in all, short by cpu 1 even when empty"),
    }


def test_behind_the_head_says_behind_whom_and_why_that_one_waits() -> None:
    node = make_node("n0", cpu=4)
    snapshot = make_snapshot(
        [node],
        [make_session("first", cpu=4, mem="1g"), make_session("second", cpu=4, mem="1g"), make_session("third")],
        [run_kernel(node, "k", cpu=1, mem="1g")],
    )
    assert explain(snapshot, "third").message == (
        "waits behind session first, which needs cpu 4, mem 1g; the closest node n0 is short by cpu 1; "
        "2 waiting before it; there is room for it now"
    )


def test_options_are_checked() -> None:
    with pytest.raises(InvalidParameter, match="neither true nor false"):
        FifoPolicy(selection=Concentrated(), strict="yes")  # type: ignore[arg-type]


def test_a_higher_priority_goes_first_and_holds_up_the_lower_ones() -> None:
    node = make_node("n0", cpu=4)
    early, urgent = make_session("early", cpu=2, mem="1g"), make_session("urgent", cpu=3, mem="1g", priority=50)
    assert placed(decide(make_snapshot([node], [early, urgent]))) == ["urgent"]
    busy = [run_kernel(node, "k", cpu=2, mem="1g")]
    plan = decide(make_snapshot([node], [early, urgent], busy))
    assert codes(plan) == {"urgent": RefusalCode.NOT_ENOUGH, "early": RefusalCode.BEHIND_HEAD}


@given(snapshots())
def test_strict_order_holds(snapshot: Snapshot) -> None:
    """Behind the first session that waits for room nothing is placed; before it, everybody was judged."""
    plan = decide(snapshot)
    reasons = codes(plan)
    head_seen = False
    queue = in_bands(snapshot.pending)
    for session in queue:
        code = reasons.get(session.id)
        if head_seen:
            assert code in (RefusalCode.BEHIND_HEAD, RefusalCode.NOT_YET, RefusalCode.DEPENDENCIES)
        elif code is not None and code not in OWN_REASONS:
            assert code is not RefusalCode.BEHIND_HEAD
            head_seen = True
    assert placed(plan) == [s.id for s in queue if s.id in set(placed(plan))]


@given(snapshots())
def test_undoing_leaves_the_room_as_it_was(snapshot: Snapshot) -> None:
    room = RoomCache().open(snapshot.nodes)
    before = room.columns.free.copy()
    mark = room.mark()
    QueuePass(room, Concentrated(), now=snapshot.now, strict=False).run(snapshot.pending)
    room.undo_to(mark)
    assert (room.columns.free == before).all()
    for row, node in enumerate(snapshot.nodes):
        assert dict(room.map(row).held) == dict(node.held)
        assert room.node(row).agent_id == AgentId(node.agent_id)


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_gang_that_fits_by_totals_but_only_in_pieces_waits(nodes: int) -> None:
    """On few nodes a pass never ended: each node that was found in pieces brought the others back."""
    world = make_snapshot(
        [make_node(f"n{i}", shares=2) for i in range(nodes)],
        [make_session("gang", size=3, cpu=1, mem="1g", cuda_shares="0.6")],
    )
    (refusal,) = FifoPolicy(selection=Concentrated()).decide(world).refusals
    assert refusal.session_id == "gang"


def test_labels_say_which_nodes_a_session_may_use() -> None:
    nodes = [make_node("n0"), replace(make_node("n1", cpu=1), labels={"disk": "ssd", "zone": "a"}), make_node("n2")]
    fast = [make_session(f"s{i}", labels={"disk": "ssd"}) for i in range(2)]
    nowhere = [
        make_session("other", labels={"disk": "tape"}),
        make_session("not-here", labels={"disk": "ssd"}, designated=("n0",)),
    ]
    snapshot = make_snapshot(nodes, [*nowhere, *fast])
    policy = FifoPolicy(selection=Concentrated())
    plan = policy.decide(snapshot)
    assert [(p.session_id, p.kernels[0].agent_id) for p in plan.placements] == [("s0", "n1")]
    said = {refusal.session_id: (refusal.code, refusal.message) for refusal in plan.refusals}
    assert said["other"] == (RefusalCode.LABELS, "needs a node with the labels disk=tape; no node has them")
    assert said["not-here"] == (RefusalCode.LABELS, "no node that it may use has the labels disk=ssd")
    assert said["s1"][0] is RefusalCode.NOT_ENOUGH
    explained = policy.explain(snapshot, SessionId("s1"))
    assert isinstance(explained, Refusal)
    assert [(node.agent_id, node.code) for node in explained.nodes] == [
        ("n0", RefusalCode.LABELS),
        ("n1", RefusalCode.NOT_ENOUGH),
        ("n2", RefusalCode.LABELS),
    ]

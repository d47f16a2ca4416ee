"""What an explanation says beside the policy's own words."""

from __future__ import annotations

from backendai_ray.core.explanations import Explanation, Fragmentation
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import Refusal, RefusalCode, Snapshot
from backendai_ray.core.sessions import ClusterMode
from policies.columns import RoomCache
from policies.explaining import explanation_of
from policies.fifo import FifoPolicy
from policies.selection import Concentrated
from policies.testing import make_node, make_session, make_snapshot, run_kernel, run_kernels


def explain(snapshot: Snapshot, name: str) -> Explanation:
    outcome = FifoPolicy(selection=Concentrated()).explain(snapshot, SessionId(name))
    session = next(one for one in snapshot.pending if one.id == name)
    return explanation_of(snapshot, session, outcome, RoomCache())


def refusal(explanation: Explanation) -> Refusal:
    assert isinstance(explanation.outcome, Refusal)
    return explanation.outcome


def test_the_position_counts_those_that_are_tried_before_it_and_wait() -> None:
    queue = [
        make_session("starts", cpu=1, mem="1g"),
        make_session("head", cpu=4, mem="1g"),
        make_session("next", cpu=1, mem="1g"),
        make_session("important", cpu=9, mem="1g", priority=20),
    ]
    snapshot = make_snapshot([make_node("n0", cpu=4)], queue)
    head, after = explain(snapshot, "head"), explain(snapshot, "next")
    assert (head.position, head.waiting, refusal(head).behind) == (2, 4, None)
    assert (after.position, refusal(after).behind) == (3, "head")
    assert refusal(after).code is RefusalCode.BEHIND_HEAD
    assert explain(snapshot, "important").position == 1
    assert explain(snapshot, "starts").position is None


def test_the_closest_node_lacks_least_of_what_is_asked() -> None:
    nodes = [make_node("a", cpu=8, mem_gib=4), make_node("b", cpu=8, mem_gib=64), make_node("c", cpu=2)]
    running = [run_kernel(nodes[0], "k0", cpu=1, mem="1g"), run_kernel(nodes[1], "k1", cpu=4, mem="1g")]
    found = explain(make_snapshot(nodes, [make_session("s", cpu=5, mem="8g")], running), "s").closest
    assert found is not None
    assert (found.agent_id, found.shortfall.human()) == ("b", {"cpu": "1"})
    alone = explain(make_snapshot([nodes[2]], [make_session("s", cpu=5, mem="1g")]), "s")
    assert alone.closest is not None
    assert alone.closest.code is RefusalCode.TOO_LARGE
    assert explain(make_snapshot([], [make_session("s")]), "s").closest is None


def test_enough_on_all_nodes_together_is_told_apart_from_too_little() -> None:
    nodes = [make_node("a", cpu=4), make_node("b", cpu=4)]
    running = [run_kernel(node, f"k{node.agent_id}", cpu=2, mem="1g") for node in nodes]
    waits = explain(make_snapshot(nodes, [make_session("s", cpu=3, mem="1g")], running), "s")
    assert waits.fragmentation is Fragmentation.ACROSS_NODES
    assert "all nodes together have enough free, none has it alone" in refusal(waits).message
    fuller = [running[0], run_kernel(nodes[1], "k", cpu=3, mem="1g")]
    waits = explain(make_snapshot(nodes, [make_session("s", cpu=4, mem="1g")], fuller), "s")
    assert waits.fragmentation is Fragmentation.NONE


def test_shares_in_pieces_on_one_node() -> None:
    """Two devices with half a share free each: 0.6 of one device is on neither."""
    node = make_node("n", cpu=8, shares=2)
    half = {"cpu": 1, "mem": "1g", "cuda_shares": "0.5"}
    first, _, third = run_kernels(node, {"k0": half, "k1": half, "k2": half})  # the first two are on one device
    halves = [first, third]
    waits = explain(make_snapshot([node], [make_session("s", cpu=1, mem="1g", cuda_shares="0.6")], halves), "s")
    assert waits.fragmentation is Fragmentation.WITHIN_NODE
    assert refusal(waits).code is RefusalCode.FRAGMENTED
    assert waits.closest is not None
    assert waits.closest.agent_id == "n"


def test_a_gang_that_must_share_a_node() -> None:
    nodes = [make_node("a", cpu=4), make_node("b", cpu=4)]
    gang = make_session("gang", size=4, cpu=2, mem="1g", mode=ClusterMode.SINGLE_NODE)
    big = make_node("c", cpu=16)
    busy = run_kernel(big, "k", cpu=12, mem="1g")
    waits = explain(make_snapshot([*nodes, big], [gang], [busy]), "gang")
    assert refusal(waits).code is RefusalCode.NOT_ENOUGH
    assert waits.fragmentation is Fragmentation.ACROSS_NODES

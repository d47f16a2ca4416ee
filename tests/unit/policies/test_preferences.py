"""What a group prefers beside its selection: turns, images, owners apart, gangs together, nodes that do not fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.scheduling import AgentSelection, Node, Snapshot
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.plugins import load_policy, load_selection
from policies.fifo import FifoPolicy
from policies.fragmentation import Fragmentation
from policies.preferences import names_of
from policies.round_robin import RoundRobin
from policies.selection import Concentrated, Dispersed
from policies.testing import PolicyConformance, make_node, make_session, make_snapshot, run_kernel, run_kernels

MULTI = ClusterMode.MULTI_NODE
BUILT_IN: tuple[Callable[..., AgentSelection], ...] = (Concentrated, Dispersed, Fragmentation, RoundRobin)
NODES = [make_node("n0", cpu=4), make_node("n1", cpu=4), make_node("n2", cpu=4)]


def agents(snapshot: Snapshot, selection: AgentSelection) -> list[str]:
    plan = FifoPolicy(selection=selection).decide(snapshot)
    return [kernel.agent_id for placement in plan.placements for kernel in placement.kernels]


class TestFifoInTurns(PolicyConformance):
    max_examples = 50

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=RoundRobin())


class TestFifoWithEveryPreference(PolicyConformance):
    max_examples = 50

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Concentrated(image_locality=1.0, apart="user", gangs="spread"))


def test_nodes_take_turns_and_the_turn_goes_on_in_the_next_pass() -> None:
    sessions = [make_session(f"s{i}") for i in range(5)]
    assert agents(make_snapshot(NODES, sessions), RoundRobin()) == ["n0", "n1", "n2", "n0", "n1"]
    earlier = replace(run_kernel(NODES[0], "a"), placed_at=5.0)
    later = replace(run_kernel(NODES[1], "b"), placed_at=6.0)
    assert agents(make_snapshot(NODES, sessions, [later, earlier]), RoundRobin()) == ["n2", "n0", "n1", "n2", "n0"]


def test_a_turn_that_cannot_be_taken_is_passed_over() -> None:
    nodes = [make_node("n0", cpu=1), make_node("n1", cpu=4)]
    assert agents(make_snapshot(nodes, [make_session(f"s{i}") for i in range(3)]), RoundRobin()) == ["n0", "n1", "n1"]


@pytest.mark.parametrize("make", BUILT_IN)
def test_agents_that_failed_lately_come_last(make: Callable[..., AgentSelection]) -> None:
    nodes = [replace(make_node("n0", cpu=1), failures=2), replace(make_node("n1", cpu=1), failures=1), NODES[2]]
    sessions = [make_session(f"s{i}") for i in range(6)]
    assert agents(make_snapshot(nodes, sessions), make()) == ["n2", "n2", "n2", "n2", "n1", "n0"]


def test_where_the_session_itself_failed_comes_after_where_others_did() -> None:
    nodes = [make_node("n0", cpu=1), replace(make_node("n1", cpu=1), failures=99)]
    assert agents(make_snapshot(nodes, [make_session("s", avoid=("n0",))]), Concentrated()) == ["n1"]


@pytest.mark.parametrize("make", BUILT_IN)
def test_of_equal_nodes_the_one_that_has_the_image_is_taken(make: Callable[..., AgentSelection]) -> None:
    nodes = [NODES[0], replace(NODES[1], images=frozenset({"python"})), NODES[2]]
    if make is not RoundRobin:
        assert agents(make_snapshot(nodes, [make_session("s")]), make()) == ["n1"]
    assert agents(make_snapshot(nodes, [make_session("s")]), make(image_locality=100)) == ["n1"]


def test_how_much_an_image_is_worth() -> None:
    nodes = [NODES[0], replace(NODES[1], images=frozenset({"python"}))]
    busy = [run_kernel(nodes[0], "k", cpu=3, mem="12g")]
    assert agents(make_snapshot(nodes, [make_session("s")], busy), Concentrated()) == ["n0"], "it is the fuller one"
    assert agents(make_snapshot(nodes, [make_session("s")], busy), Concentrated(image_locality=1)) == ["n1"]


def test_an_image_has_several_names() -> None:
    assert "python:latest" in names_of("python")
    assert "python:3" in names_of("docker.io/library/python:3")
    assert "localhost:5000/a/b:latest" in names_of("localhost:5000/a/b")
    assert names_of("python:3") == {"python:3"}


def test_owners_keep_apart_within_a_pass_and_from_what_runs() -> None:
    sessions = [make_session(f"{who}{i}", access_key=who) for i in range(2) for who in ("A", "B")]
    assert agents(make_snapshot(NODES, sessions), Concentrated()) == ["n0"] * 4
    assert agents(make_snapshot(NODES, sessions), Concentrated(apart="keypair")) == ["n0", "n0", "n1", "n1"]
    busy = run_kernels(NODES[0], {"k": {"cpu": 1, "mem": "1g"}})  # of AK
    ours = [make_session("s", access_key="AK"), make_session("t", access_key="B")]
    assert agents(make_snapshot(NODES, ours, busy), Concentrated(apart="keypair")) == ["n1", "n0"]


def test_keeping_apart_never_keeps_anybody_waiting() -> None:
    sessions = [make_session(f"s{i}") for i in range(12)]
    assert len(agents(make_snapshot(NODES, sessions), Concentrated(apart="user", apart_weight=100))) == 12


@pytest.mark.parametrize("make", BUILT_IN)
def test_a_gang_goes_on_one_node_else_on_the_fewest(make: Callable[..., AgentSelection]) -> None:
    nodes = [make_node("n0", cpu=2), make_node("n1", cpu=2), make_node("n2", cpu=5), make_node("n3", cpu=4)]
    four = make_snapshot(nodes, [make_session("g", size=4, mode=MULTI)])
    [one] = set(agents(four, make(gangs="pack")))
    assert one in {"n2", "n3"}
    eight = make_snapshot(nodes, [make_session("g", size=8, mode=MULTI)])
    assert set(agents(eight, make(gangs="pack"))) == {"n2", "n3"}


def test_of_the_nodes_that_hold_a_gang_alone_the_selection_takes_the_best() -> None:
    nodes = [make_node("n0", cpu=8), make_node("n1", cpu=8)]
    busy = [run_kernel(nodes[1], "k", cpu=4, mem="8g")]
    snapshot = make_snapshot(nodes, [make_session("g", size=3, mode=MULTI)], busy)
    assert agents(snapshot, Concentrated()) == ["n1"] * 3
    assert agents(snapshot, Dispersed(gangs="pack")) == ["n0"] * 3


@pytest.mark.parametrize("make", BUILT_IN)
def test_a_gang_is_spread_as_long_as_there_are_nodes(make: Callable[..., AgentSelection]) -> None:
    spread = agents(make_snapshot(NODES, [make_session("g", size=4, mode=MULTI)]), make(gangs="spread"))
    assert set(spread[:3]) == {"n0", "n1", "n2"}
    assert len(spread) == 4


def test_dispersed_spreads_gangs_and_the_others_pack_them() -> None:
    assert [make().gangs for make in BUILT_IN] == ["pack", "spread", "pack", "pack"]  # type: ignore[attr-defined]


def test_a_gang_avoids_nodes_that_failed_even_if_it_needs_more_nodes_then() -> None:
    nodes = [replace(make_node("n0", cpu=8), failures=1), make_node("n1", cpu=2), make_node("n2", cpu=2)]
    assert set(agents(make_snapshot(nodes, [make_session("g", size=4, mode=MULTI)]), Concentrated())) == {"n1", "n2"}


_worlds = st.tuples(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1), st.sampled_from("AB")), max_size=5),
)


@settings(deadline=None, max_examples=60)
@given(_worlds, st.sampled_from(["pack", "spread", "score"]), st.sampled_from(["", "keypair"]))
def test_preferences_change_where_and_never_whether(world: tuple[list[Any], list[Any]], gangs: str, apart: str) -> None:
    """One session after the other, alone on the nodes: every gang that fits at all fits under every preference."""
    nodes: list[Node] = [
        replace(make_node(f"n{i}", cpu=cpu, gpus=gpus), failures=failures)
        for i, (cpu, gpus, failures) in enumerate(world[0])
        if cpu
    ]
    for i, (size, cpu, gpus, owner) in enumerate(world[1]):
        amounts: dict[str, Any] = {"cpu": cpu, "mem": "1g"} | ({"cuda_device": gpus} if gpus else {})
        session = make_session(f"s{i}", size=size, mode=MULTI, access_key=owner, **amounts)
        snapshot = make_snapshot(nodes, [session])
        plain = agents(snapshot, Concentrated(gangs="score"))
        assert len(plain) in (0, size)
        for make in BUILT_IN:
            assert len(agents(snapshot, make(gangs=gangs, apart=apart, image_locality=0.5))) == len(plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gangs": "together"}, "gangs: 'together' is none of pack, spread, score"),
        ({"apart": "image"}, "apart: 'image' is none of keypair, user, project, domain"),
        ({"image_locality": -1}, "image_locality: give a number from 0 to 100, not -1"),
        ({"apart_weight": "much"}, "apart_weight: give a number"),
        ({"image_locality": True}, "image_locality: give a number"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_an_option_is_named(options: dict[str, Any], words: str) -> None:
    for name in ("concentrated", "dispersed", "fragmentation", "round-robin"):
        with pytest.raises(InvalidParameter, match=words):
            load_selection(name, options)


def test_the_options_of_a_selection_are_an_option_of_the_group() -> None:
    policy = load_policy("fifo", "concentrated", {"selection": {"gangs": "spread"}})
    assert set(_agents_of(policy.decide(make_snapshot(NODES, [make_session("g", size=3, mode=MULTI)])))) == {
        "n0",
        "n1",
        "n2",
    }
    with pytest.raises(InvalidParameter, match="selection: give its options as an object"):
        load_policy("fifo", "concentrated", {"selection": "spread"})


def _agents_of(plan: Any) -> list[str]:
    return [kernel.agent_id for placement in plan.placements for kernel in placement.kernels]

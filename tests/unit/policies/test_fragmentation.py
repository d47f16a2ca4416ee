"""The selection that keeps accelerators usable for what is expected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray import plugins
from backendai_ray.core.scheduling import AgentSelection, Node, PendingSession, RunningKernel, Snapshot
from policies.fifo import FifoPolicy
from policies.fragmentation import Fragmentation
from policies.fragmentation.worth import Mix, Shape, Stock, reach_of
from policies.selection import Concentrated
from policies.testing import (
    PolicyConformance,
    make_node,
    make_session,
    make_snapshot,
    run_kernel,
    run_kernels,
    snapshots,
)


class TestFifoWithFragmentation(PolicyConformance):
    work_conserving = True
    max_examples = 25

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Fragmentation())


def test_it_is_installed() -> None:
    assert isinstance(plugins.load_selection("fragmentation"), Fragmentation)


@settings(max_examples=50)
@given(snapshots())
def test_every_candidate_is_ranked_once_and_always_the_same(snapshot: Snapshot) -> None:
    for session in snapshot.pending[:3]:
        ranked = Fragmentation().rank(session, snapshot.nodes)
        assert sorted(node.agent_id for node in ranked) == [node.agent_id for node in snapshot.nodes]
        assert ranked == Fragmentation().rank(session, snapshot.nodes)


def chosen(
    selection: AgentSelection,
    nodes: list[Node],
    pending: list[PendingSession],
    running: list[RunningKernel] | None = None,
) -> str:
    """Return where the first of the waiting sessions goes."""
    plan = FifoPolicy(selection=selection, strict=False).decide(make_snapshot(nodes, pending, running))
    return plan.placements[0].kernels[0].agent_id


def test_cores_beside_a_free_accelerator_are_left_to_those_who_need_both() -> None:
    nodes = [make_node("tight", cpu=8, gpus=2), make_node("roomy", cpu=16, gpus=1)]
    running = run_kernels(nodes[0], {"k": {"cpu": 4, "mem": "8g", "cuda_device": 1}})
    waiting = [make_session("plain", cpu=4, mem="1g")]
    waiting += [make_session(f"gpu{i}", submitted_at=1.0, cpu=4, mem="1g", cuda_device=1) for i in range(4)]
    assert chosen(Concentrated(), nodes, waiting, running) == "tight"
    assert chosen(Fragmentation(), nodes, waiting, running) == "roomy"


def test_scarce_nodes_are_left_to_those_who_can_use_nothing_else() -> None:
    nodes = [make_node("common", gpus=4, cpu=16), make_node("scarce", gpus=2, cpu=8, architecture="aarch64")]
    running = [run_kernel(nodes[1], "k", cpu=2, mem="8g", cuda_device=1)]
    waiting = [make_session("any", cpu=2, mem="1g", cuda_device=1)]
    picky = make_session("picky", submitted_at=1.0, cpu=2, mem="1g", cuda_device=1, architecture="aarch64")
    assert chosen(Concentrated(), nodes, [*waiting, picky], running) == "scarce"
    assert chosen(Fragmentation(), nodes, [*waiting, picky], running) == "common"


def test_a_whole_device_is_not_broken_while_a_broken_one_suffices() -> None:
    nodes = [make_node("broken", shares=2, cpu=16), make_node("whole", shares=1, cpu=4)]
    running = [run_kernel(nodes[0], "k", cpu=1, mem="1g", cuda_shares="0.5")]
    running.append(run_kernel(nodes[1], "other", cpu=2, mem="8g"))
    waiting = [make_session("part", cpu=1, mem="1g", cuda_shares="0.5")]
    waiting += [make_session(f"one{i}", submitted_at=1.0, cpu=2, mem="1g", cuda_shares=1) for i in range(3)]
    assert chosen(Concentrated(), nodes, waiting, running) == "whole"
    assert chosen(Fragmentation(), nodes, waiting, running) == "broken"


def test_without_accelerators_it_fills_the_fullest_node() -> None:
    nodes = [make_node("n0"), make_node("n1")]
    running = [run_kernel(nodes[1], "k", cpu=1, mem="1g")]
    assert chosen(Fragmentation(), nodes, [make_session("s")], running) == "n1"


_MIX = Mix(
    (Shape(4, 8, 1, 1000), Shape(2, 4, 1, 300), Shape(8, 16, 2, 1000), Shape(0, 0, 1, 500)),
    (0.4, 0.3, 0.2, 0.1),
    0.5,
)


def stock_of(cpu: list[int], mem: list[int], free: list[list[int]]) -> Stock:
    devices = np.full(len(cpu), 2)
    access = np.ones((len(cpu), len(_MIX.shapes)), dtype=np.bool_)
    return Stock(np.array(cpu), np.array(mem), np.array(free), devices, _MIX, access)


_states = st.tuples(
    st.integers(0, 20), st.integers(0, 40), st.lists(st.sampled_from([0, 200, 500, 1000]), min_size=2, max_size=2)
)


@settings(max_examples=60)
@given(st.lists(st.tuples(_states, _states), min_size=1, max_size=4), st.sampled_from(_MIX.shapes))
def test_following_changes_is_the_same_as_starting_from_them(
    nodes: list[tuple[tuple[int, int, list[int]], tuple[int, int, list[int]]]], shape: Shape
) -> None:
    before, after = zip(*nodes, strict=True)
    followed = stock_of(*(list(column) for column in zip(*before, strict=True)))
    for row, (cpu, mem, free) in enumerate(after):
        followed.changed(row, cpu, mem, free)
    fresh = stock_of(*(list(column) for column in zip(*after, strict=True)))
    rows = np.arange(len(nodes))
    assert followed.loss(shape, rows).tolist() == fresh.loss(shape, rows).tolist()


@pytest.mark.parametrize(("cpu", "mem"), [(0, 40), (20, 0)])
def test_a_device_without_cores_or_memory_beside_it_is_worth_nothing(cpu: int, mem: int) -> None:
    rows = np.array([0])
    assert stock_of([cpu], [mem], [[1000, 1000]]).loss(Shape(0, 0, 2, 1000), rows)[0] == 0
    assert stock_of([20], [40], [[1000, 1000]]).loss(Shape(0, 0, 2, 1000), rows)[0] > 0


def test_the_scarcer_cores_or_memory_are_the_less_is_left_for_others() -> None:
    assert reach_of(1.0, 0.5, 0.4) == reach_of(0.5, 0.25, 0.2) > reach_of(1.0, 1.0, 0.4) > reach_of(1.0, 0.5, 1.1)
    assert 0 < reach_of(0.0, 1.0, 1.0) < reach_of(1.0, 0.0, 0.0) < 1

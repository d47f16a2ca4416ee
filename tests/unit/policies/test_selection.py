"""Which node is taken when several could be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given

from backendai_ray.core.scheduling import AgentSelection, Node, PendingSession, Snapshot
from policies.fifo import FifoPolicy
from policies.selection import Concentrated, Dispersed
from policies.testing import PolicyConformance, make_node, make_session, make_snapshot, run_kernel, snapshots


class Ranked:
    """A selection as an author would write it first: without columns."""

    name = "ranked"

    def __init__(self, inner: AgentSelection) -> None:
        self._inner = inner

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        return self._inner.rank(session, candidates)


class TestFifoWithAPlainSelection(PolicyConformance):
    max_examples = 20

    def make_policy(self) -> FifoPolicy:
        return FifoPolicy(selection=Ranked(Dispersed()))


def agents(snapshot: Snapshot, selection: AgentSelection) -> list[str]:
    plan = FifoPolicy(selection=selection).decide(snapshot)
    return [kernel.agent_id for placement in plan.placements for kernel in placement.kernels]


def three_sessions_on_three_nodes() -> Snapshot:
    nodes = [make_node("n0", cpu=4), make_node("n1", cpu=4), make_node("n2", cpu=4)]
    busy = [run_kernel(nodes[1], "k", cpu=1, mem="1g")]
    return make_snapshot(nodes, [make_session(f"s{i}") for i in range(4)], busy)


def test_concentrated_fills_the_fullest_first() -> None:
    assert agents(three_sessions_on_three_nodes(), Concentrated()) == ["n1", "n1", "n1", "n0"]


def test_dispersed_takes_the_emptiest_first() -> None:
    assert agents(three_sessions_on_three_nodes(), Dispersed()) == ["n0", "n2", "n0", "n1"]


@pytest.mark.parametrize("selection", [Concentrated(), Dispersed()])
def test_who_asks_for_no_accelerator_leaves_them_alone(selection: AgentSelection) -> None:
    nodes = [make_node("gpu", cpu=4, gpus=2), make_node("plain", cpu=1)]
    sessions = [make_session("a"), make_session("b"), make_session("c", cuda_device=1, cpu=1)]
    assert agents(make_snapshot(nodes, sessions), selection) == ["plain", "gpu", "gpu"]


@given(snapshots())
def test_ranking_and_scoring_choose_the_same(snapshot: Snapshot) -> None:
    for selection in (Concentrated(gangs="score"), Dispersed(gangs="score")):
        by_column = FifoPolicy(selection=selection).decide(snapshot)
        assert FifoPolicy(selection=Ranked(selection)).decide(snapshot) == by_column


def test_a_selection_that_loses_nodes_is_found_out() -> None:
    class Forgetful:
        name = "forgetful"

        def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
            return candidates[1:]

    with pytest.raises(ValueError, match="forgetful did not return the candidates"):
        agents(three_sessions_on_three_nodes(), Forgetful())

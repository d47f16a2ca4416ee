"""Moves that let a waiting session start: as few as possible, with a place for everybody, or an honest no."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import Node, PendingSession, Placement, RunningKernel, Snapshot
from backendai_ray.core.sessions import ClusterMode
from policies.candidates import Candidates
from policies.checking import problems_of
from policies.columns import RoomCache
from policies.consolidation import propose
from policies.fifo import FifoPolicy
from policies.placing import place
from policies.preemption_options import ConsolidationOptions
from policies.selection import Concentrated
from policies.testing import NOW, make_node, make_session, make_snapshot

OPTIONS = ConsolidationOptions(max_moves=2, min_runtime_s=0)


def put(nodes: list[Node], *sessions: tuple[str, int, int], **changes: Any) -> list[RunningKernel]:
    """Sessions that run and may be moved: name, number of the node, cores."""
    rooms = [DeviceMap(node.devices) for node in nodes]
    running: list[RunningKernel] = []
    for age, (name, at, cores) in enumerate(sessions):
        waits = make_session(name, cpu=cores, mem="256m")
        found = rooms[at].allocate(waits.slots)
        assert isinstance(found, Allocation)
        rooms[at].hold(waits.kernel_ids[0], found)
        kernel = RunningKernel(
            kernel_id=waits.kernel_ids[0],
            session_id=waits.id,
            agent_id=nodes[at].agent_id,
            access_key=waits.access_key,
            project="default",
            domain="default",
            allocation=found,
            priority=10,
            placed_at=NOW - 100 - age,
            restarts_as=waits,
        )
        running.append(replace(kernel, **changes))
    return running


def three_nodes_in_pieces(**changes: Any) -> tuple[list[Node], list[RunningKernel]]:
    """Three nodes of four cores, two of which are free on each: by two and two, ``c`` is the youngest."""
    nodes = [make_node(f"n{i}") for i in range(3)]
    return nodes, put(nodes, ("a", 0, 2), ("b", 1, 2), ("c", 2, 2), **changes)


def big(**changes: Any) -> PendingSession:
    return make_session("big", **{"cpu": 4, "mem": "1g", **changes})


def test_one_move_makes_the_room() -> None:
    nodes, running = three_nodes_in_pieces()
    world = make_snapshot(nodes, [big()], running)
    proposal = propose(world, world.pending[0], OPTIONS)
    assert problems_of(world, proposal.plan) == ()
    (line,) = proposal.plan.preemptions
    assert (line.victim, line.beneficiary, line.reschedule) == ("a", "big", True)
    (move,) = proposal.moves
    assert (move.before, move.after, move.ran_s) == (("n0",), ("n1",), 100)
    assert [place.session_id for place in proposal.plan.nominations] == ["big", "a"]
    assert proposal.message == "it can start if 1 session is moved, which loses 100 s of work"


def test_a_gang_over_nodes() -> None:
    nodes = [make_node(f"n{i}") for i in range(4)]
    running = put(nodes, ("a", 0, 2), ("b", 1, 2), ("c", 2, 2), ("d", 3, 2))
    world = make_snapshot(nodes, [big(size=2, mode=ClusterMode.MULTI_NODE)], running)
    proposal = propose(world, world.pending[0], OPTIONS)
    assert problems_of(world, proposal.plan) == ()
    assert len(proposal.moves) == 2


@pytest.mark.parametrize(
    ("waiting", "changes", "words"),
    [
        ({}, {"restarts_as": None}, "none that runs is of its priority or below and may be run again"),
        ({"priority": 5}, {}, "none that runs is of its priority or below and may be run again"),
        ({}, {"placed_at": NOW + 1}, "those that could have run for less than 0 s"),
        ({"size": 3, "mode": ClusterMode.MULTI_NODE}, {}, "found nothing: 3 sessions may be moved, and no 2 moves"),
        ({"cpu": 2}, {}, "there is room for it now; nothing has to be moved"),
        ({"cpu": 5}, {}, "no move would let it start: it needs cpu 5"),
        ({"starts_at": NOW + 60}, {}, "no move would let it start: it starts at"),
        ({}, {"ending": True}, "what is being ended at this moment makes room enough"),
        ({}, {"ending": True, "ending_for": SessionId("big")}, "room is being made for it already"),
    ],
)
def test_an_honest_no(waiting: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    nodes, running = three_nodes_in_pieces(**changes)
    world = make_snapshot(nodes, [big(**waiting)], running)
    proposal = propose(world, world.pending[0], OPTIONS)
    assert words in proposal.message
    assert (proposal.moves, proposal.plan.preemptions, proposal.plan.nominations) == ((), (), ())


def test_only_whom_the_asker_may_move() -> None:
    nodes, running = three_nodes_in_pieces()
    world = make_snapshot(nodes, [big()], running)
    proposal = propose(world, world.pending[0], OPTIONS, lambda kernel: kernel.session_id == "b")
    assert [move.session_id for move in proposal.moves] == ["b"]


def test_a_policy_does_it_by_itself_and_keeps_both_places() -> None:
    nodes, running = three_nodes_in_pieces()
    other = make_session("other", cpu=2, mem="256m", submitted_at=1.0)
    policy = FifoPolicy(
        selection=Concentrated(), strict=False, consolidation={"max_moves": 1, "min_runtime_s": 0, "grace_s": 3}
    )
    world = make_snapshot(nodes, [big(), other], running)
    plan = policy.decide(world)
    assert problems_of(world, plan) == ()
    assert [(line.victim, line.grace_s) for line in plan.preemptions] == [("a", 3.0)]
    assert plan.refusals[0].message == "waits for session a to be moved, which makes room for it"
    assert [placement.kernels[0].agent_id for placement in plan.placements] == ["n2"]  # n0 and n1 are kept


def test_the_next_place_is_kept_while_the_session_is_on_its_way_out() -> None:
    nodes, running = three_nodes_in_pieces()
    world = make_snapshot(nodes, [big()], running)
    mine, its = propose(world, world.pending[0], OPTIONS).plan.nominations
    moved = replace(make_session("a", cpu=2, mem="256m"), nominated=its.kernels)
    running[0] = replace(running[0], ending=True, ending_for=SessionId("big"), restarts_as=moved)
    others = [make_session(f"o{i}", cpu=2, mem="256m", submitted_at=1.0) for i in range(3)]
    world = make_snapshot(nodes, [replace(big(), nominated=mine.kernels), *others], running)
    plan = FifoPolicy(selection=Concentrated(), strict=False).decide(world)
    assert [placement.kernels[0].agent_id for placement in plan.placements] == ["n2"]
    world = make_snapshot(nodes, [replace(big(), nominated=mine.kernels), *others, moved], running[1:])
    plan = FifoPolicy(selection=Concentrated(), strict=False).decide(world)
    assert {p.session_id: p.kernels[0].agent_id for p in plan.placements} == {"big": "n0", "a": "n1", "o0": "n2"}


def _possible(world: Snapshot, session: PendingSession, moved: tuple[RunningKernel, ...]) -> bool:
    """Whether some order of placing finds room for the session and all that are moved."""
    still = [kernel for kernel in world.running if kernel not in moved]
    room = RoomCache().open(make_snapshot(list(world.nodes), [], still).nodes)
    todo = [session, *(kernel.restarts_as for kernel in moved if kernel.restarts_as is not None)]
    return all(isinstance(place(room, Candidates(room, one, Concentrated()), one), Placement) for one in todo)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=6), st.integers(2, 4))
def test_what_is_proposed_can_be_done_with_as_few_moves_as_possible(rows: list[tuple[int, int]], cores: int) -> None:
    nodes = [make_node(f"n{i}") for i in range(3)]
    free = [4, 4, 4]
    sessions = []
    for number, (at, size) in enumerate(rows):
        if free[at] >= size:
            free[at] -= size
            sessions.append((f"s{number}", at, size))
    world = make_snapshot(nodes, [big(cpu=cores)], put(nodes, *sessions))
    session = world.pending[0]
    if max(free) >= cores:
        return
    proposal = propose(world, session, OPTIONS)
    assert problems_of(world, proposal.plan) == ()
    of_one_node = [
        one for size in (1, 2) for one in combinations(world.running, size) if len({k.agent_id for k in one}) == 1
    ]
    sets = [one for one in of_one_node if _possible(world, session, one)]
    if not proposal.moves:
        assert not sets
    else:
        assert not sets or len(proposal.moves) <= len(sets[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (2, "options.consolidation: 2 is no mapping"),
        ({}, "options.consolidation.max_moves: None is not a whole number between 0 and 8"),
        ({"max_moves": 9}, "options.consolidation.max_moves: 9 is not a whole number"),
        ({"max_moves": 1, "scope": "group"}, "options.consolidation.scope: there is no such option"),
    ],
)
def test_wrong_options_are_named(given: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        FifoPolicy(selection=Concentrated(), consolidation=given)


def test_kernel_ids_are_kept() -> None:
    """A moved session keeps its kernels' ids: it is the same session that runs again."""
    nodes, running = three_nodes_in_pieces()
    world = make_snapshot(nodes, [big()], running)
    plan = propose(world, world.pending[0], OPTIONS).plan
    assert [kernel.kernel_id for kernel in plan.nominations[1].kernels] == [KernelId("a-0")]

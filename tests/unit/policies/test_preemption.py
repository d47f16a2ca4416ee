"""Who is ended for whom, and that it comes to an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.scheduling import (
    KernelPlacement,
    Node,
    PendingSession,
    Placement,
    Plan,
    Refusal,
    RefusalCode,
    RunningKernel,
    SchedulingPolicy,
    Snapshot,
)
from policies.backfill import BackfillPolicy
from policies.checking import problems_of, without_answer
from policies.drf import DrfPolicy
from policies.fifo import FifoPolicy
from policies.lifo import LifoPolicy
from policies.preemption_options import Mode, PreemptionOptions, Scope
from policies.selection import Concentrated
from policies.testing import (
    NOW,
    PolicyConformance,
    carried_out,
    make_node,
    make_session,
    make_snapshot,
    run_kernels,
    snapshots,
)

ON = {"scope": "group", "min_runtime_s": 0}


def fifo(*, strict: bool = True, **preemption: Any) -> FifoPolicy:
    return FifoPolicy(selection=Concentrated(), strict=strict, preemption={**ON, **preemption})


def filled(node: Node, *priorities: int, **changes: Any) -> list[RunningKernel]:
    """Sessions ``v0``, ``v1`` … of one core each that run on a node and may run again."""
    kernels = run_kernels(node, {f"k{i}": {"cpu": 1, "mem": "1g"} for i in range(len(priorities))})
    return [runs(k, f"v{i}", p, **changes) for i, (k, p) in enumerate(zip(kernels, priorities, strict=True))]


def runs(kernel: RunningKernel, name: str, priority: int, **changes: Any) -> RunningKernel:
    waits = replace(make_session(name, priority=priority), kernel_ids=(kernel.kernel_id,))
    whose: dict[str, Any] = {"session_id": SessionId(name), "priority": priority, "restarts_as": waits}
    return replace(kernel, **{**whose, **changes})


def victims(plan: Plan) -> list[str]:
    return [line.victim for line in plan.preemptions]


class TestFifoThatPreempts(PolicyConformance):
    max_examples = 50

    def make_policy(self) -> SchedulingPolicy:
        return fifo(mode="terminate")


class TestBackfillThatPreempts(PolicyConformance):
    max_examples = 25

    def make_policy(self) -> SchedulingPolicy:
        return BackfillPolicy(selection=Concentrated(), preemption={**ON, "mode": "terminate"})


# ── who ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cheapest_that_make_the_room() -> None:
    node = make_node("n0")
    world = make_snapshot([node], [make_session("big", priority=50, cpu=2, mem="1g")], filled(node, 20, 10, 10, 30))
    plan = fifo(grace_s=7).decide(world)
    assert victims(plan) == ["v1", "v2"]
    assert {(line.beneficiary, line.reschedule, line.grace_s) for line in plan.preemptions} == {("big", True, 7.0)}
    assert plan.preemptions[0].message == "preempted for session big of priority 50 (its own: 10)"
    (refusal,) = plan.refusals
    assert (refusal.code, refusal.message) == (
        RefusalCode.AWAITS_ROOM,
        "waits for sessions v1, v2 to end, which makes room for it",
    )
    (place,) = plan.nominations
    assert (place.session_id, place.kernels[0].agent_id) == ("big", "n0")
    assert problems_of(world, plan) == ()
    assert fifo(grace_s=7).explain(world, SessionId("big")) != refusal  # it names the nodes too
    assert isinstance(fifo(grace_s=7).explain(world, SessionId("big")), Refusal)


def test_nobody_is_ended_by_default() -> None:
    node = make_node("n0")
    world = make_snapshot([node], [make_session("big", priority=50)], filled(node, 10, 10, 10, 10))
    assert FifoPolicy(selection=Concentrated()).decide(world).preemptions == ()
    assert fifo(scope="off").decide(world).preemptions == ()


@pytest.mark.parametrize("priority", [10, 9])
def test_only_those_of_a_strictly_lower_priority(priority: int) -> None:
    node = make_node("n0")
    world = make_snapshot([node], [make_session("s", priority=priority)], filled(node, 10, 10, 10, 10))
    assert fifo().decide(world).preemptions == ()


@pytest.mark.parametrize(
    ("scope", "whose", "may"),
    [
        ("owner", {"access_key": AccessKey("AK")}, True),
        ("owner", {"access_key": AccessKey("BK")}, False),
        ("project", {"access_key": AccessKey("BK")}, True),
        ("project", {"project": "other"}, False),
        ("project", {"domain": "other"}, False),
        ("domain", {"project": "other"}, True),
        ("domain", {"domain": "other"}, False),
        ("group", {"domain": "other"}, True),
    ],
)
def test_the_scope(scope: str, whose: dict[str, Any], may: bool) -> None:
    node = make_node("n0", cpu=1)
    world = make_snapshot([node], [make_session("s", priority=50)], filled(node, 10, **whose))
    assert bool(fifo(scope=scope).decide(world).preemptions) is may


def test_the_mode_decides_about_those_that_cannot_run_again() -> None:
    node = make_node("n0", cpu=1)
    world = make_snapshot([node], [make_session("s", priority=50)], filled(node, 10, restarts_as=None))
    assert fifo().decide(world).preemptions == ()
    assert [line.reschedule for line in fifo(mode="terminate").decide(world).preemptions] == [False]


def test_the_system_is_left_alone() -> None:
    node = make_node("n0", cpu=1)
    world = make_snapshot([node], [make_session("s", priority=50)], filled(node, 10, preemptible=False))
    assert fifo(mode="terminate").decide(world).preemptions == ()


def test_a_session_is_safe_at_first_and_the_plan_says_until_when() -> None:
    node = make_node("n0", cpu=1)
    running = filled(node, 10, placed_at=NOW - 20)
    world = make_snapshot([node], [make_session("s", priority=50)], running)
    plan = fifo(min_runtime_s=60).decide(world)
    assert (plan.preemptions, plan.next_at) == ((), NOW + 40)
    assert victims(fifo(min_runtime_s=60).decide(replace(world, now=NOW + 40))) == ["v0"]


def test_nobody_is_ended_where_it_would_not_help() -> None:
    node = make_node("n0")
    world = make_snapshot([node], [make_session("s", priority=50, cpu=3, mem="1g")], filled(node, 10, 60, 60, 10))
    plan = fifo().decide(world)
    assert plan.preemptions == ()
    assert plan.refusals[0].code is RefusalCode.NOT_ENOUGH


def test_a_gang_is_ended_whole_and_makes_room_on_its_nodes() -> None:
    nodes = [make_node("n0", cpu=1), make_node("n1", cpu=1)]
    one, two = run_kernels(nodes[0], {"a": {"cpu": 1}})[0], run_kernels(nodes[1], {"b": {"cpu": 1}})[0]
    gang = [runs(one, "gang", 10), runs(two, "gang", 10)]
    both = tuple(kernel.kernel_id for kernel in gang)
    waits = replace(make_session("gang"), kernel_ids=both)
    gang = [replace(kernel, restarts_as=waits) for kernel in gang]
    world = make_snapshot(nodes, [make_session("s", priority=50)], gang)
    assert victims(fifo().decide(world)) == ["gang"]


# ── once, and for whom it was ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_being_ended_already_is_waited_for() -> None:
    node = make_node("n0")
    running = filled(node, 10, 10, 10, 10)
    running[0] = replace(running[0], ending=True)
    world = make_snapshot([node], [make_session("s", priority=50)], running)
    plan = fifo().decide(world)
    assert plan.preemptions == ()
    assert plan.refusals[0].message == "waits for session v0 to end; that makes room enough"


def world_with_room_being_made(*others: PendingSession, freed: bool = False) -> Snapshot:
    """``big`` (three cores) is promised what ``v0`` and ``v1`` hold; they are being ended, or ``v0`` has ended."""
    node = make_node("n0")
    running = filled(node, 10, 10, 90)
    big = make_session("big", priority=50, cpu=3, mem="1g")
    nominated = fifo().decide(make_snapshot([node], [big], running)).nominations[0].kernels
    running = [replace(k, ending=True, ending_for=big.id) if k.priority == 10 else k for k in running]
    still = running[1:] if freed else running
    return make_snapshot([node], [replace(big, nominated=nominated), *others], still)


def test_no_more_are_chosen_while_some_are_being_ended() -> None:
    world = world_with_room_being_made(freed=True)
    plan = fifo().decide(world)
    assert (plan.preemptions, plan.placements) == ((), ())
    assert plan.refusals[0].message == "waits for session v1 to end, which makes room for it"


@pytest.mark.parametrize("priority", [10, 50])
def test_nobody_else_takes_the_place_that_is_being_made(priority: int) -> None:
    other = make_session("other", priority=priority, submitted_at=-1.0)
    plan = fifo(strict=False).decide(world_with_room_being_made(other, freed=True))
    assert plan.placements == ()
    assert problems_of(world_with_room_being_made(other, freed=True), plan) == ()


def test_a_more_important_one_may_take_it() -> None:
    other = make_session("other", priority=60)
    plan = fifo(strict=False).decide(world_with_room_being_made(other, freed=True))
    assert [placement.session_id for placement in plan.placements] == ["other"]


def test_a_kept_place_does_not_wait_behind_the_head_of_the_queue() -> None:
    world = world_with_room_being_made(make_session("first", priority=50, cpu=4, mem="1g", submitted_at=-1.0))
    first = replace(world.pending[1], submitted_at=-1.0)
    world = replace(world, pending=(first, world.pending[0]), running=world.running[2:])
    world = make_snapshot(list(world.nodes), list(world.pending), list(world.running))
    plan = fifo(scope="off").decide(world)
    assert [placement.session_id for placement in plan.placements] == ["big"]


def test_a_place_that_cannot_come_free_any_more_is_kept_from_nobody() -> None:
    world = world_with_room_being_made(make_session("other", priority=10))
    taken = [replace(kernel, ending=False, ending_for=None, priority=90) for kernel in world.running[1:]]
    world = make_snapshot(list(world.nodes), list(world.pending), taken)
    plan = fifo(strict=False).decide(world)
    assert [placement.session_id for placement in plan.placements] == ["other"]


def test_two_in_one_pass_do_not_count_on_the_same_room() -> None:
    node = make_node("n0", cpu=2)
    pending = [make_session("a", priority=50), make_session("b", priority=40), make_session("c", priority=30)]
    world = make_snapshot([node], pending, filled(node, 10, 20))
    plan = fifo(strict=False).decide(world)
    assert [(line.victim, line.beneficiary) for line in plan.preemptions] == [("v0", "a"), ("v1", "b")]
    assert problems_of(world, plan) == ()
    assert [line.beneficiary for line in fifo().decide(world).preemptions] == ["a"]


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """Any world, in which what runs may be ended, moved or neither, or is being ended."""
    world = draw(snapshots(max_nodes=3, max_pending=5))
    running: list[RunningKernel] = []
    for number, kernel in enumerate(world.running):
        waits = replace(
            make_session(f"r{number}", priority=draw(st.sampled_from([0, 10, 20]))),
            id=kernel.session_id,
            slots=kernel.allocation.slots(),
            kernel_ids=(kernel.kernel_id,),
        )
        ending = draw(st.sampled_from([False, False, True]))
        beneficiary = draw(st.sampled_from([None, *(session.id for session in world.pending)])) if ending else None
        changes: dict[str, Any] = {
            "priority": waits.priority,
            "restarts_as": draw(st.sampled_from([waits, waits, None])),
            "preemptible": draw(st.sampled_from([True, True, True, False])),
            "ending": ending,
            "ending_for": beneficiary,
            "placed_at": NOW - draw(st.sampled_from([0.0, 100.0])),
        }
        running.append(replace(kernel, **changes))
    return make_snapshot(list(world.nodes), list(world.pending), running)


@settings(max_examples=50, deadline=None)
@given(worlds(), st.booleans(), st.sampled_from(list(Mode)))
def test_plans_in_any_world_can_be_carried_out(world: Snapshot, strict: bool, mode: Mode) -> None:
    def decide(snapshot: Snapshot) -> Plan:
        options = {"scope": "group", "mode": mode, "min_runtime_s": 50}
        moving = {"max_moves": 2, "min_runtime_s": 50}
        selection = Concentrated()
        policy = FifoPolicy(selection=selection, strict=strict, preemption=options, consolidation=moving)
        plan = policy.decide(snapshot)
        assert policy.decide(snapshot) == plan
        return plan

    plan = decide(world)
    assert problems_of(world, plan) == ()
    assert without_answer(world, plan) == ()
    waited_for = {kernel.ending_for for kernel in world.running}
    assert waited_for.isdisjoint(line.beneficiary for line in plan.preemptions)
    # The next pass keeps the places that this one made.
    places = {placement.session_id: placement.kernels for placement in plan.nominations}
    ended = {line.victim: line.beneficiary for line in plan.preemptions}
    started = {placement.session_id for placement in plan.placements}
    later = make_snapshot(
        list(world.nodes),
        [replace(s, nominated=places.get(s.id, ())) for s in world.pending if s.id not in started],
        [
            replace(kernel, ending=True, ending_for=ended[kernel.session_id]) if kernel.session_id in ended else kernel
            for kernel in carried_out(world, plan).running
        ],
    )
    again = decide(later)
    assert problems_of(later, again) == ()
    assert set(places).isdisjoint(line.beneficiary for line in again.preemptions)


# ── it comes to an end ────────────────────────────────────────────────────────────────────────────────────────────


class Day:
    """A small cluster under a policy: sessions come, are placed, ended for others, and end; checked at every step."""

    def __init__(self, nodes: list[Node], policy: SchedulingPolicy, min_runtime_s: float) -> None:
        self.nodes, self.policy, self.min_runtime_s = nodes, policy, min_runtime_s
        self.now = NOW
        self.pending: list[PendingSession] = []
        self.running: list[RunningKernel] = []
        self._were_ending: list[RunningKernel] = []
        self.preempted: list[tuple[int, int]] = []
        self.done: list[SessionId] = []

    def pass_(self) -> bool:
        """Make and carry out a plan; returns whether it did anything."""
        self._were_ending = [kernel for kernel in self.running if kernel.ending]
        world = make_snapshot(self.nodes, self.pending, self.running, now=self.now)
        plan = self.policy.decide(world)
        assert problems_of(world, plan) == ()
        places = {placement.session_id: placement.kernels for placement in plan.nominations}
        for line in plan.preemptions:
            self._preempt(line.victim, line.beneficiary, places.get(line.victim, ()))
        self.pending = [replace(s, nominated=places.get(s.id, s.nominated)) for s in self.pending]
        for placement in plan.placements:
            self._start(placement)
        return bool(plan.placements or plan.preemptions)

    def _preempt(self, victim: SessionId, beneficiary: SessionId, moved: tuple[KernelPlacement, ...]) -> None:
        assert all(kernel.ending_for != beneficiary for kernel in self._were_ending)
        (waits,) = [session for session in self.pending if session.id == beneficiary]
        (one,) = [kernel for kernel in self.running if kernel.session_id == victim]
        assert one.priority < waits.priority + bool(moved)
        assert self.now - one.placed_at >= self.min_runtime_s
        assert one.restarts_as is not None
        self.preempted.append((one.priority, waits.priority))
        again = replace(one.restarts_as, nominated=moved)
        ending = replace(one, ending=True, ending_for=beneficiary, restarts_as=again)
        self.running = [ending if kernel is one else kernel for kernel in self.running]

    def _start(self, placement: Placement) -> None:
        (session,) = [session for session in self.pending if session.id == placement.session_id]
        self.pending.remove(session)
        for kernel in placement.kernels:
            self.running.append(
                RunningKernel(
                    kernel_id=kernel.kernel_id,
                    session_id=session.id,
                    agent_id=kernel.agent_id,
                    access_key=session.access_key,
                    project=session.project,
                    domain=session.domain,
                    allocation=kernel.allocation,
                    priority=session.priority,
                    placed_at=self.now,
                    restarts_as=replace(session, nominated=(), version=session.version + 1),
                )
            )

    def end_one_that_ends(self) -> bool:
        """Let the oldest session that is being ended go back into the queue."""
        for kernel in self.running:
            if kernel.ending and kernel.restarts_as is not None:
                self.running.remove(kernel)
                again = kernel.restarts_as
                self.pending.append(replace(again, preemptions=again.preemptions + 1))
                self.pending.sort(key=lambda session: (session.submitted_at, session.id))
                return True
        return False

    def finish_one(self) -> bool:
        """Let the session that has run longest end by itself."""
        for kernel in self.running:
            if not kernel.ending:
                self.running.remove(kernel)
                self.done.append(kernel.session_id)
                return True
        return False

    def come_to_rest(self) -> None:
        """Nothing comes and nothing finishes any more: plans and endings must run out."""
        for _ in range(200):
            acted = self.pass_()
            if not self.end_one_that_ends() and not acted:
                return
            self.now += 1.0
        raise AssertionError("it goes on for ever")


def _moving(preemption: Any) -> Any:
    return {"max_moves": 2, "min_runtime_s": preemption["min_runtime_s"]}


_POLICIES = st.sampled_from(
    [
        lambda p: FifoPolicy(selection=Concentrated(), preemption=p),
        lambda p: FifoPolicy(selection=Concentrated(), strict=False, preemption=p),
        lambda p: LifoPolicy(selection=Concentrated(), strict=False, preemption=p),
        lambda p: DrfPolicy(selection=Concentrated(), strict=False, preemption=p),
        lambda p: BackfillPolicy(selection=Concentrated(), preemption=p),
        lambda p: FifoPolicy(selection=Concentrated(), strict=False, consolidation=_moving(p)),
        lambda p: FifoPolicy(selection=Concentrated(), preemption=p, consolidation=_moving(p)),
    ]
)


@settings(max_examples=40, deadline=None)
@given(_POLICIES, st.sampled_from([0.0, 5.0]), st.data())
def test_any_history_comes_to_an_end_and_loses_nobody(make: Any, min_runtime_s: float, data: st.DataObject) -> None:
    policy = make({"scope": "group", "min_runtime_s": min_runtime_s})
    nodes = [make_node("n0", cpu=3), make_node("n1", cpu=2)]
    day, submitted = Day(nodes, policy, min_runtime_s), 0
    for move in data.draw(st.lists(st.sampled_from("sssppppeeft"), max_size=30)):
        match move:
            case "s":
                session = make_session(
                    f"s{submitted}",
                    priority=data.draw(st.sampled_from([10, 20, 30])),
                    cpu=data.draw(st.integers(1, 3)),
                    mem="1g",
                    submitted_at=float(submitted),
                    access_key=data.draw(st.sampled_from(["AK", "BK"])),
                    time_limit_s=data.draw(st.sampled_from([None, 10.0])),
                )
                day.pending.append(session)
                submitted += 1
            case "p":
                day.pass_()
            case "e":
                day.end_one_that_ends()
            case "f":
                day.finish_one()
            case _:
                day.now += data.draw(st.sampled_from([1.0, 10.0]))
    day.come_to_rest()
    for _ in range(10 * submitted):
        day.finish_one()
        day.now += 10.0
        day.come_to_rest()
    assert sorted(day.done) == sorted(f"s{i}" for i in range(submitted))


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_options_are_read() -> None:
    read = PreemptionOptions.parse({"scope": "project", "mode": "terminate", "min_runtime_s": 5, "grace_s": 30})
    assert read == PreemptionOptions(scope=Scope.PROJECT, mode=Mode.TERMINATE, min_runtime_s=5.0, grace_s=30.0)
    assert PreemptionOptions.parse(None).scope is Scope.OFF


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("group", "options.preemption: 'group' is no mapping"),
        ({}, "options.preemption.scope: None is not one of off, owner, project, domain, group"),
        ({"scope": "all"}, "options.preemption.scope: 'all' is not one of"),
        ({"scope": "group", "mode": "kill"}, "options.preemption.mode: 'kill' is not one of reschedule, terminate"),
        ({"scope": "group", "min_runtime_s": -1}, "options.preemption.min_runtime_s: -1 is not a number of seconds"),
        ({"scope": "group", "grace_s": True}, "options.preemption.grace_s: True is not a number of seconds"),
        ({"scope": "group", "grace": 1}, "options.preemption.grace: there is no such option; there are scope, mode"),
    ],
)
def test_wrong_options_are_named(given: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message) as caught:
        FifoPolicy(selection=Concentrated(), preemption=given)
    assert str(caught.value.details["field"]).startswith("options.preemption")

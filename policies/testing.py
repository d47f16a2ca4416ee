"""What a scheduling policy must hold, as tests to inherit.

    from policies.testing import PolicyConformance

    class TestMyPolicy(PolicyConformance):
        def make_policy(self):
            return MyPolicy(selection=Concentrated())

It needs pytest and Hypothesis. The builders and the generator of worlds (:func:`snapshots`) serve an author's own tests
as well.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given, settings

from backendai_ray.core.errors import InvalidParameter, SessionNotFound
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.scheduling import (
    Node,
    PendingSession,
    Placement,
    Refusal,
    RefusalCode,
    SchedulingPolicy,
    Snapshot,
)
from backendai_ray.core.sessions import ClusterMode

from .checking import problems_of, without_answer
from .invariants import over_allocated, room_left_idle, split_gangs
from .reasons import OWN_REASONS
from .selection import Concentrated
from .testing_worlds import (
    GIB,
    GPU,
    NOW,
    SHARES,
    carried_out,
    make_node,
    make_session,
    make_snapshot,
    run_kernel,
    run_kernels,
    snapshots,
)

__all__ = [
    "GIB",
    "GPU",
    "NOW",
    "SHARES",
    "PolicyConformance",
    "carried_out",
    "make_node",
    "make_session",
    "make_snapshot",
    "run_kernel",
    "run_kernels",
    "snapshots",
]


class PolicyConformance:
    """Inherit it and say how to make the policy."""

    max_examples: ClassVar[int] = 100
    work_conserving: ClassVar[bool] = False
    """Whether everything that fits is placed, but for sessions held back behind one that waits for room."""
    strict: ClassVar[bool] = True
    """Whether a work-conserving policy may hold sessions back at all."""

    def make_policy(self) -> SchedulingPolicy:
        """Return a fresh policy."""
        raise NotImplementedError

    def test_it_has_a_name(self) -> None:
        assert self.make_policy().name

    def test_an_unknown_option_is_an_invalid_parameter(self) -> None:
        with pytest.raises(InvalidParameter, match="no-such-option"):
            type(self.make_policy())(selection=Concentrated(), **{"no-such-option": 1})  # type: ignore[call-arg]

    def test_an_empty_world_has_an_empty_plan(self) -> None:
        plan = self.make_policy().decide(make_snapshot([], []))
        assert (plan.placements, plan.preemptions, plan.refusals) == ((), (), ())

    def test_a_session_starts_on_an_empty_node(self) -> None:
        plan = self.make_policy().decide(make_snapshot([make_node("n0")], [make_session("s0")]))
        assert [placement.session_id for placement in plan.placements] == ["s0"]

    def test_no_node_is_a_reason_and_no_error(self) -> None:
        plan = self.make_policy().decide(make_snapshot([], [make_session("s0"), make_session("s1")]))
        assert sorted(refusal.session_id for refusal in plan.refusals) == ["s0", "s1"]

    def test_explaining_an_unknown_session_says_that_it_is_not_waiting(self) -> None:
        with pytest.raises(SessionNotFound):
            self.make_policy().explain(make_snapshot([make_node("n0")], []), SessionId("nobody"))

    def test_any_plan_can_be_carried_out(self) -> None:
        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            assert problems_of(snapshot, self.make_policy().decide(snapshot)) == ()

        check()

    def test_every_session_gets_one_answer_with_a_reason(self) -> None:
        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            plan = self.make_policy().decide(snapshot)
            assert without_answer(snapshot, plan) == ()
            assert all(refusal.message for refusal in plan.refusals)

        check()

    def test_sessions_that_are_not_eligible_are_left_alone(self) -> None:
        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            placed = {placement.session_id: placement for placement in self.make_policy().decide(snapshot).placements}
            nodes = {node.agent_id: node for node in snapshot.nodes}
            for session in snapshot.pending:
                if session.id in placed:
                    _check_eligible(session, placed[session.id], nodes)

        check()

    def test_it_decides_the_same_whatever_it_saw_before(self) -> None:
        warm = self.make_policy()

        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            plan = self.make_policy().decide(snapshot)
            assert warm.decide(snapshot) == plan
            assert warm.decide(snapshot) == plan

        check()

    def test_following_its_plans_comes_to_rest(self) -> None:
        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            policy = self.make_policy()
            for _ in range(len(snapshot.pending) + 1):
                plan = policy.decide(snapshot)
                if not plan.placements:
                    return
                snapshot = carried_out(snapshot, plan)
            raise AssertionError("it still finds something to place")

        check()

    def test_a_history_loses_and_doubles_nobody(self) -> None:
        """Plans are carried out and kernels end in turn: nothing is ever over-allocated, halved, doubled or lost."""

        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            policy = self.make_policy()
            waiting, started = {session.id for session in snapshot.pending}, list[SessionId]()
            while True:
                plan = policy.decide(snapshot)
                after = carried_out(snapshot, plan)
                assert over_allocated(after) == ()
                assert split_gangs(snapshot, after) == ()
                started += [placement.session_id for placement in plan.placements]
                snapshot = _without_oldest(after)
                if not plan.placements and not after.running:
                    break
            assert len(set(started)) == len(started)
            assert {*started, *(session.id for session in snapshot.pending)} == waiting

        check()

    def test_what_fits_is_not_refused(self) -> None:
        if not self.work_conserving:
            pytest.skip("the policy does not say that it is work conserving")

        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            plan = self.make_policy().decide(snapshot)
            assert room_left_idle(carried_out(snapshot, plan), plan, strict=self.strict) == ()

        check()

    def test_an_explanation_agrees_with_the_decision(self) -> None:
        @settings(max_examples=self.max_examples, deadline=None)
        @given(snapshots())
        def check(snapshot: Snapshot) -> None:
            policy = self.make_policy()
            plan = policy.decide(snapshot)
            placed = {placement.session_id: placement for placement in plan.placements}
            refused = {refusal.session_id: refusal.code for refusal in plan.refusals}
            for session in snapshot.pending:
                outcome = policy.explain(snapshot, session.id)
                if session.id in placed:
                    assert outcome == placed[session.id]
                else:
                    _check_explanation(snapshot, session, outcome, refused[session.id])

        check()


def _without_oldest(snapshot: Snapshot) -> Snapshot:
    oldest = snapshot.running[0].session_id if snapshot.running else None
    still = [kernel for kernel in snapshot.running if kernel.session_id != oldest]
    return make_snapshot(list(snapshot.nodes), list(snapshot.pending), still, now=snapshot.now)


def _check_eligible(session: PendingSession, placement: Placement, nodes: dict[AgentId, Node]) -> None:
    assert session.starts_at is None or session.starts_at <= NOW
    assert not session.waiting_for
    agents = {kernel.agent_id for kernel in placement.kernels}
    if session.designated_agents:
        assert agents <= set(session.designated_agents)
    if session.architecture:
        assert {nodes[agent].architecture for agent in agents} == {session.architecture}
    if session.cluster_mode is ClusterMode.SINGLE_NODE:
        assert len(agents) == 1


def _check_explanation(snapshot: Snapshot, session: PendingSession, outcome: object, decided: RefusalCode) -> None:
    assert isinstance(outcome, Refusal)
    # Of a session behind others a pass need not know more; an explanation says what it could not start for anyway.
    says_more = decided is RefusalCode.BEHIND_HEAD and outcome.code in OWN_REASONS
    assert outcome.code is decided or says_more
    assert outcome.session_id == session.id
    assert outcome.message
    named = [refusal.agent_id for refusal in outcome.nodes]
    assert len(set(named)) == len(named)
    assert set(named) <= {node.agent_id for node in snapshot.nodes}
    assert all(refusal.message for refusal in outcome.nodes)

"""The policy actor: a warm world, and policies that misbehave."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.policy_host import PolicyHost
from actors.testing.sokovan import GROUP, FakeManager
from backendai_ray.core.errors import InvalidParameter, SessionNotFound, Unavailable
from backendai_ray.core.explanations import StartBasis
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import (
    PendingSession,
    Placement,
    Plan,
    Refusal,
    RefusalCode,
    SchedulingPolicy,
    Snapshot,
)
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.plugins import load_policy
from policies.fifo import FifoPolicy
from policies.selection import Concentrated
from policies.testing import make_node, make_session
from tests.support.waiting import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Custom(FifoPolicy):
    """fifo with one method replaced."""

    name = "custom"

    def __init__(self, decide: Callable[[Snapshot], Any], explain: Callable[..., Any] | None = None) -> None:
        super().__init__(selection=Concentrated())
        self._decides = decide
        self._explains = explain

    def decide(self, snapshot: Snapshot) -> Plan:
        plan: Plan = self._decides(snapshot)
        return plan

    def explain(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        if self._explains is None:
            return super().explain(snapshot, session_id)
        outcome: Refusal | Placement = self._explains(snapshot, session_id)
        return outcome


async def no_report(handle: object) -> NodeReport:
    raise Unavailable("the node's report is gone")


def host_with(policy: SchedulingPolicy | None = None, **kwargs: Any) -> PolicyHost:
    def load(name: str, selection: str, options: Mapping[str, Any]) -> SchedulingPolicy:
        return policy if policy is not None and name == "custom" else load_policy(name, selection, options)

    return PolicyHost(GROUP, resolve=no_report, load=load, **kwargs)


@pytest.fixture
def manager() -> FakeManager:
    manager = FakeManager()
    manager.add_node(make_node("n0", cpu=4))
    manager.submit(make_session("s0"), make_session("s1", cpu=8, mem="1g"))
    return manager


async def decide(host: PolicyHost, manager: FakeManager, now: float = 0.0) -> Plan:
    incarnation, upto = await host.position()
    plan = await host.decide(await manager.changes(GROUP, incarnation, upto), now)
    assert plan is not None
    return plan


def placed(plan: Plan) -> list[str]:
    return [placement.session_id for placement in plan.placements]


async def test_it_decides_on_what_it_was_told(manager: FakeManager) -> None:
    host = host_with()
    plan = await decide(host, manager)
    assert placed(plan) == ["s0"]
    assert plan.warning == ""
    assert await host.position() == (manager.incarnation, 3)
    await manager.apply(GROUP, plan, pass_id="1")
    manager.submit(make_session("s2"))
    assert placed(await decide(host, manager)) == ["s2"]


async def test_a_gap_or_another_incarnation_asks_for_the_whole_world(manager: FakeManager) -> None:
    host = host_with()
    changes = await manager.changes(GROUP, manager.incarnation, 0)
    assert await host.decide(changes, 0.0) is None, "it knows nothing yet"
    await decide(host, manager)
    assert await host.decide(replace(changes, upto=99), 0.0) is None
    assert await host.decide(replace(changes, incarnation="other"), 0.0) is None
    manager.restart()
    assert placed(await decide(host, manager)) == ["s0"]


async def test_the_next_start_time_comes_with_the_plan(manager: FakeManager) -> None:
    manager.submit(make_session("later", starts_at=100.0))
    assert (await decide(host_with(), manager)).next_at == 100.0


async def test_a_lost_report_keeps_the_node_out_until_the_next_one(manager: FakeManager) -> None:
    host = host_with()
    manager.add_node(make_node("n1", cpu=8), handle=["a reference whose owner died"])
    plan = await decide(host, manager)
    assert placed(plan) == ["s0"]
    outcome = (await host.explain(SessionId("s1"), 0.0)).outcome
    assert isinstance(outcome, Refusal)
    assert "its report was lost" in {refusal.agent_id: refusal for refusal in outcome.nodes}[AgentId("n1")].message
    manager.add_node(make_node("n1", cpu=8))
    assert placed(await decide(host, manager)) == ["s0", "s1"]


def raises(_: Snapshot) -> Plan:
    raise ValueError("division by a cucumber")


def exits(_: Snapshot) -> Plan:
    raise SystemExit(1)


def doubles(snapshot: Snapshot) -> Plan:
    plan = FifoPolicy(selection=Concentrated()).decide(snapshot)
    return replace(plan, placements=plan.placements * 2)


def overbooks(snapshot: Snapshot) -> Plan:
    plan = FifoPolicy(selection=Concentrated()).decide(snapshot)
    thief = replace(plan.placements[0], session_id=SessionId("s1"), version=1)
    return replace(plan, placements=(*plan.placements, thief), refusals=())


def elsewhere(snapshot: Snapshot) -> Plan:
    (placement,) = FifoPolicy(selection=Concentrated()).decide(snapshot).placements
    kernels = tuple(replace(kernel, agent_id=AgentId("nowhere")) for kernel in placement.kernels)
    return Plan(placements=(replace(placement, kernels=kernels),))


@pytest.mark.parametrize(
    ("misbehaves", "words"),
    [
        (raises, "ValueError: division by a cucumber"),
        (exits, "SystemExit"),
        (lambda _: None, "it is no Plan but NoneType"),
        (lambda _: Plan(placements=("nonsense",)), "AttributeError"),  # type: ignore[arg-type]
        (doubles, "is placed twice"),
        (overbooks, "not all of its kernels"),
        (elsewhere, "node nowhere is not there"),
    ],
)
async def test_a_policy_that_misbehaves_costs_its_plan_only(
    manager: FakeManager, misbehaves: Callable[[Snapshot], Any], words: str
) -> None:
    host = host_with(Custom(misbehaves))
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s0"], "fifo decided"
    assert words in plan.warning
    assert "fifo decides in its place" in plan.warning
    outcome = (await host.explain(SessionId("s1"), 0.0)).outcome
    assert isinstance(outcome, Refusal)
    assert plan.warning in outcome.message


async def test_the_warning_goes_when_the_policy_works_again(manager: FakeManager) -> None:
    good = FifoPolicy(selection=Concentrated())
    plans: list[Callable[[Snapshot], Plan]] = [raises, good.decide]
    host = host_with(Custom(lambda snapshot: plans.pop(0)(snapshot)))
    await host.configure("custom", "concentrated", {})
    assert (await decide(host, manager)).warning
    assert (await decide(host, manager)).warning == ""


async def test_a_policy_that_hangs_is_stopped_and_put_in_quarantine(manager: FakeManager) -> None:
    began: list[float] = []
    ended: list[str] = []

    def hangs(_: Snapshot) -> Plan:
        began.append(time.monotonic())
        try:
            while time.monotonic() < began[-1] + 20:
                pass
        except BaseException as exc:
            ended.append(type(exc).__name__)
            raise
        return Plan()

    clock = Clock()
    host = host_with(Custom(hangs), decide_timeout_s=0.2, quarantine_s=60, clock=clock)
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s0"]
    assert "did not answer within 0.2 s" in plan.warning
    clock.now = 59.0
    await host.configure("custom", "concentrated", {})
    assert (await decide(host, manager)).warning == plan.warning
    assert len(began) == 1, "it was not asked again"
    await asyncio.to_thread(wait_until, lambda: ended, story="the thread was not stopped")
    clock.now = 61.0
    assert placed(await decide(host, manager)) == ["s0"]
    assert len(began) == 2, "it was given another chance"


async def test_an_unknown_policy_is_refused_and_fifo_decides_until_there_is_one(manager: FakeManager) -> None:
    host = host_with()
    with pytest.raises(InvalidParameter, match="not installed"):
        await host.configure("lottery", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s0"]
    assert "policy lottery cannot be used" in plan.warning
    await host.configure("fifo", "dispersed", {})
    plan = await decide(host, manager)
    assert (placed(plan), plan.warning) == (["s0"], "")


async def test_the_policy_is_switched_without_losing_the_queue(manager: FakeManager) -> None:
    host = host_with()
    manager.submit(make_session("small"))
    manager.add_node(make_node("n1", cpu=8, unschedulable=""))
    manager.submit(make_session("big", cpu=8, mem="1g"), make_session("tiny", cpu="0.5", mem="256m"))
    strict = await decide(host, manager)
    assert placed(strict) == ["s0", "s1", "small"]
    await host.configure("fifo", "concentrated", {"strict": False})
    assert placed(await decide(host, manager)) == ["s0", "s1", "small", "tiny"]


async def test_nonsense_explanations_are_replaced(manager: FakeManager) -> None:
    good = FifoPolicy(selection=Concentrated())
    host = host_with(Custom(good.decide, lambda *_: "because"))
    await host.configure("custom", "concentrated", {})
    await decide(host, manager)
    outcome = (await host.explain(SessionId("s1"), 0.0)).outcome
    assert isinstance(outcome, Refusal)
    assert outcome.message.startswith("needs cpu 8, mem 1g; the largest node n0 is short by cpu 4 even when empty")
    assert "it explained with str" in outcome.message


async def test_plans_and_explanations_survive_the_trip_between_actors(manager: FakeManager) -> None:
    host = host_with()
    plan = await decide(host, manager)
    outcome = await host.explain(SessionId("s1"), 0.0)
    assert pickle.loads(pickle.dumps((plan, outcome))) == (plan, outcome)


async def test_explaining_what_does_not_wait(manager: FakeManager) -> None:
    host = host_with()
    await decide(host, manager)
    with pytest.raises(SessionNotFound):
        await host.explain(SessionId("nobody"), 0.0)


# ── explanations and rehearsals ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_explanation_tells_the_position_the_policy_and_the_estimate(manager: FakeManager) -> None:
    host = host_with()
    manager.submit(make_session("s2", cpu=4, mem="1g", time_limit_s=60), make_session("s3", cpu=4, mem="1g"))
    await manager.apply(GROUP, await decide(host, manager), pass_id="1")
    await decide(host, manager)
    explanation = await host.explain(SessionId("s3"), 0.0)
    assert (explanation.position, explanation.waiting, explanation.policy) == (3, 3, "fifo")
    assert explanation.estimate.basis is StartBasis.UNKNOWN, "s0 has no time limit"
    assert "s0" in explanation.estimate.message
    too_large = await host.explain(SessionId("s1"), 0.0)
    assert "not before the nodes change" in too_large.estimate.message


async def test_a_policy_that_fails_in_the_future_costs_the_estimate_only(manager: FakeManager) -> None:
    good = FifoPolicy(selection=Concentrated())

    def fails_later(snapshot: Snapshot) -> Plan:
        if snapshot.now > 0:
            raise ValueError("no future")
        return good.decide(snapshot)

    host = host_with(Custom(fails_later, good.explain))
    await host.configure("custom", "concentrated", {})
    first = make_session("s2", cpu=4, mem="1g", time_limit_s=60)
    manager.submit(first, make_session("s3", starts_at=50.0))
    await decide(host, manager)
    explanation = await host.explain(SessionId("s3"), 0.0)
    assert isinstance(explanation.outcome, Refusal)
    assert (explanation.estimate.basis, explanation.warning) == (StartBasis.UNKNOWN, "")
    assert "no future" in explanation.estimate.message


async def test_many_questions_about_one_world_are_one_look_ahead(manager: FakeManager) -> None:
    asked: list[float] = []
    good = FifoPolicy(selection=Concentrated())

    def counts(snapshot: Snapshot) -> Plan:
        asked.append(snapshot.now)
        return good.decide(snapshot)

    host = host_with(Custom(counts, good.explain))
    await host.configure("custom", "concentrated", {})
    manager.submit(*(make_session(f"q{i}", cpu=4, mem="1g", time_limit_s=10) for i in range(5)))
    await manager.apply(GROUP, await decide(host, manager), pass_id="1")
    manager.release(KernelId("s0-0"))
    await decide(host, manager)
    asked.clear()
    found = [(await host.explain(SessionId(f"q{i}"), 0.0)) for i in (4, 2, 3)]
    assert [one.estimate.at for one in found] == [40.0, 20.0, 30.0]
    assert asked == [0.0, 10.0, 20.0, 30.0, 40.0]


_drafts = st.lists(
    st.builds(
        make_session,
        st.uuids().map(str),
        size=st.sampled_from([1, 1, 2]),
        mode=st.sampled_from(list(ClusterMode)),
        cpu=st.sampled_from(["0.5", 1, 2, 3, 9]),
        mem=st.just("1g"),
        priority=st.sampled_from([10, 10, 20]),
        starts_at=st.sampled_from([None, None, 5.0, 50.0]),
        waiting_for=st.sampled_from([(), (), ("other",)]),
    ),
    min_size=1,
    max_size=7,
    unique_by=lambda session: session.id,
)


@settings(max_examples=40, deadline=None)
@given(_drafts)
def test_a_rehearsal_tells_what_submitting_and_deciding_would_do(sessions: list[PendingSession]) -> None:
    asyncio.run(_rehearse_then_submit(sessions))


async def _rehearse_then_submit(sessions: list[PendingSession]) -> None:
    manager, host = FakeManager(), host_with()
    for name, cpu in (("n0", 4), ("n1", 2)):
        manager.add_node(make_node(name, cpu=cpu))
    *queue, draft = sessions
    manager.submit(*queue)
    await manager.apply(GROUP, await decide(host, manager, 10.0), pass_id="1")
    await decide(host, manager, 10.0)
    before = host._mirror.snapshot(10.0)
    rehearsed = await host.rehearse(draft, 10.0)
    assert host._mirror.snapshot(10.0) == before, "nothing remembers it"
    manager.submit(draft)
    plan = await decide(host, manager, 10.0)
    explained = await host.explain(draft.id, 10.0)
    assert (explained.outcome, explained.waiting) == (rehearsed.outcome, rehearsed.waiting)
    if isinstance(rehearsed.outcome, Placement):
        assert rehearsed.outcome in plan.placements
        assert rehearsed.estimate.basis is StartBasis.NOW
    else:
        decided = {refusal.session_id: refusal.code for refusal in plan.refusals}[draft.id]
        assert decided in (rehearsed.outcome.code, RefusalCode.BEHIND_HEAD)

"""The worst policies: what they answer costs them their own lines, and the group goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from actors.testing.sokovan import GROUP, FakeManager
from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter, PolicyStuck, Unavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName, SessionId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import Changes, Plan, Preemption, Refusal, RefusalCode, SchedulingPolicy, Snapshot
from backendai_ray.plugins import load_policy
from policies.fifo import FifoPolicy
from policies.selection import Concentrated
from policies.testing import make_node, make_session
from tests.support.waiting import wait_until_async

Decides = Callable[[Snapshot], Any]


class Custom(FifoPolicy):
    """fifo, but for what it decides."""

    name = "custom"

    def __init__(self, decide: Decides) -> None:
        super().__init__(selection=Concentrated())
        self._decides = decide

    def decide(self, snapshot: Snapshot) -> Plan:
        plan: Plan = self._decides(snapshot)
        return plan


async def no_report(handle: object) -> NodeReport:
    raise Unavailable("the node's report is gone")


def host_with(decide: Decides, **kwargs: Any) -> PolicyHost:
    def load(name: str, selection: str, options: Mapping[str, Any]) -> SchedulingPolicy:
        return Custom(decide) if name == "custom" else load_policy(name, selection, options)

    return PolicyHost(GROUP, resolve=no_report, load=load, **kwargs)


@pytest.fixture
def manager() -> FakeManager:
    manager = FakeManager()
    manager.add_node(make_node("n0", cpu=4, mem_gib=64))
    manager.submit(*(make_session(f"s{i}", cpu=1, mem="1g") for i in range(6)))
    return manager


async def decide(host: PolicyHost, manager: FakeManager, now: float = 0.0) -> Plan:
    incarnation, upto = await host.position()
    plan = await host.decide(await manager.changes(GROUP, incarnation, upto), now)
    if plan is None:
        plan = await host.decide(await manager.changes(GROUP, "", 0), now)
    assert plan is not None
    return plan


def placed(plan: Plan) -> list[str]:
    return [placement.session_id for placement in plan.placements]


def fifo(snapshot: Snapshot) -> Plan:
    return FifoPolicy(selection=Concentrated()).decide(snapshot)


# ── line by line ──────────────────────────────────────────────────────────────────────────────────────────────────────


def last_first_and_one_wrong(snapshot: Snapshot) -> Plan:
    """Starts the last two, the second of them on a node that is not there; does not answer for the others."""
    pending = snapshot.pending
    plan = fifo(replace(snapshot, pending=pending[-2:]))
    good, bad = plan.placements
    kernels = tuple(replace(kernel, agent_id=AgentId("nowhere")) for kernel in bad.kernels)
    return Plan(placements=(good, replace(bad, kernels=kernels)))


async def test_good_lines_count_and_fifo_decides_on_the_others(manager: FakeManager) -> None:
    host = host_with(last_first_and_one_wrong)
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s4", "s0", "s1", "s2"]
    assert [refusal.session_id for refusal in plan.refusals] == ["s3", "s5"]
    assert "session s5: node nowhere is not there" in plan.warning
    assert "fifo decides in its place" in plan.warning
    applied = await manager.apply(GROUP, plan, pass_id="1")
    assert applied.rejected == ()


async def test_whom_the_policy_refuses_fifo_does_not_start(manager: FakeManager) -> None:
    def refuses_most(snapshot: Snapshot) -> Plan:
        no = [Refusal(session.id, RefusalCode.POLICY_FAILED, "not today") for session in snapshot.pending[:4]]
        return Plan(placements=fifo(snapshot).placements[-1:] * 2, refusals=tuple(no[:-1]))

    host = host_with(refuses_most)
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s3", "s4", "s5"], "s0 to s2 were refused"


async def test_all_devices_given_twice(manager: FakeManager) -> None:
    def overbooks(snapshot: Snapshot) -> Plan:
        plan = fifo(snapshot)
        first = plan.placements[0]
        thieves = [
            replace(
                first,
                session_id=session.id,
                version=session.version,
                kernels=(replace(first.kernels[0], kernel_id=session.kernel_ids[0]),),
            )
            for session in snapshot.pending
        ]
        return Plan(placements=tuple(thieves))

    host = host_with(overbooks)
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s0", "s1", "s2", "s3"]
    assert not (await manager.apply(GROUP, plan, pass_id="1")).rejected


async def test_a_gigantic_plan_is_cut(manager: FakeManager) -> None:
    host = host_with(lambda snapshot: Plan(placements=fifo(snapshot).placements * 100_000))
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan)[:4] == ["s0", "s1", "s2", "s3"]
    assert len(plan.warning) < 1000


async def test_victims_that_do_not_run_cost_the_preemptions_only(manager: FakeManager) -> None:
    victim = Preemption(victim=SessionId("nobody"), beneficiary=SessionId("s5"), message="")
    host = host_with(lambda snapshot: replace(fifo(snapshot), preemptions=(victim,)))
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert (placed(plan), plan.preemptions) == (["s0", "s1", "s2", "s3"], ())
    assert "nobody is not running" in plan.warning


@pytest.mark.parametrize(
    "changes",
    [
        lambda snapshot: snapshot.pending.clear(),
        lambda snapshot: snapshot.nodes[0].labels.update(mine="yes"),
        lambda snapshot: snapshot.nodes[0].held.clear(),
        lambda snapshot: setattr(snapshot.nodes[0], "unschedulable", "mine"),
    ],
)
async def test_a_snapshot_cannot_be_changed(manager: FakeManager, changes: Decides) -> None:
    host = host_with(changes)
    await host.configure("custom", "concentrated", {})
    plan = await decide(host, manager)
    assert placed(plan) == ["s0", "s1", "s2", "s3"]
    assert "policy custom failed" in plan.warning


async def test_a_policy_that_ends_the_process_when_it_is_made() -> None:
    def load(name: str, selection: str, options: Mapping[str, Any]) -> SchedulingPolicy:
        raise SystemExit(3)

    host = PolicyHost(GROUP, resolve=no_report, load=load)
    with pytest.raises(InvalidParameter, match="cannot be made"):
        await host.configure("custom", "concentrated", {})
    assert "fifo decides until it can" in host.warning


# ── hanging where no exception reaches ────────────────────────────────────────────────────────────────────────────────


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_thread_that_cannot_be_stopped_asks_for_another_process(manager: FakeManager) -> None:
    let_go = threading.Event()

    def sleeps(_: Snapshot) -> Plan:
        let_go.wait(20)  # in C: no exception is raised inside it
        return Plan()

    clock = Clock()
    host = host_with(sleeps, decide_timeout_s=0.1, quarantine_s=60, clock=clock)
    await host.configure("custom", "concentrated", {})
    try:
        assert placed(await decide(host, manager)) == ["s0", "s1", "s2", "s3"]
        assert await host.position() == ("", 0), "what the thread may still change is not used again"
        clock.now = 61.0
        with pytest.raises(PolicyStuck):
            await decide(host, manager)
    finally:
        let_go.set()


class Hosts:
    """Policy actors by name; replacing one makes a fresh one."""

    def __init__(self, first: PolicyHost) -> None:
        self.hosts = {GROUP: first}
        self.replaced: list[ResourceGroupName] = []
        self.configured: list[tuple[str, str]] = []

    async def connect(self, group: ResourceGroupName) -> PolicyHost:
        return self.hosts.setdefault(group, Watched(self, group))

    async def replace(self, group: ResourceGroupName) -> None:
        self.replaced.append(group)
        self.hosts[group] = Watched(self, group)


class Watched(PolicyHost):
    def __init__(self, hosts: Hosts, group: ResourceGroupName) -> None:
        super().__init__(group, resolve=no_report)
        self._hosts = hosts

    async def configure(
        self, policy: str, selection: str, options: Mapping[str, Any], *, standing_in: str = ""
    ) -> None:
        self._hosts.configured.append((policy, standing_in))
        await super().configure(policy, selection, options, standing_in=standing_in)


class Silent(PolicyHost):
    """Its process does not answer: the policy holds the interpreter."""

    async def decide(self, changes: Changes, now: float) -> Plan | None:
        raise Unavailable("policy:default did not answer decide within 30 s", actor="policy:default", timed_out=True)


async def test_an_actor_that_hangs_is_replaced_and_its_policy_left_out_for_a_while(manager: FakeManager) -> None:
    manager.configs[GROUP]["policy"] = "drf"
    hosts = Hosts(Silent(GROUP, resolve=no_report))
    clock = Clock()
    settings = Settings.model_validate({"scheduler": {"sweep_interval_s": 0.05}})
    sokovan = Sokovan(
        settings,
        manager=manager.as_contract(),
        connect_host=hosts.connect,
        replace_host=hosts.replace,
        clock=clock,
        random=Random(0),
    )

    async def is_placed() -> bool:
        return len(manager.placed) == 4

    async def is_back() -> bool:
        return hosts.configured[-1] == ("drf", "")

    await sokovan.start()
    try:
        await wait_until_async(is_placed)
        assert hosts.replaced == [GROUP]
        [(policy, why)] = hosts.configured
        assert policy == "fifo"
        assert "policy drf failed (policy:default did not answer" in why
        stats = (await sokovan.stats())[GROUP]
        assert stats["warning"] == why
        assert stats["actors_replaced"] == 1
        clock.now = 61.0
        await wait_until_async(is_back)
        manager.release(next(iter(manager.running)))
        await wait_until_async(lambda: _counts(manager, 5))
        assert (await sokovan.stats())[GROUP]["warning"] == ""
    finally:
        await sokovan.stop()


async def _counts(manager: FakeManager, count: int) -> bool:
    return len(manager.placed) == count


async def test_the_other_groups_do_not_notice() -> None:
    """Two groups, one with a policy that hangs: the other one's sessions start meanwhile."""
    good, bad = FakeManager(), FakeManager()
    for manager in (good, bad):
        manager.add_node(make_node("n0", cpu=4))
        manager.submit(make_session("s0"))
    let_go = threading.Event()
    slow = host_with(lambda _: let_go.wait(20), decide_timeout_s=5.0)
    quick = host_with(fifo)
    for host in (slow, quick):
        await host.configure("custom", "concentrated", {})
    hangs = asyncio.create_task(decide(slow, bad))
    await asyncio.sleep(0)
    try:
        assert placed(await decide(quick, good)) == ["s0"]
        assert not hangs.done()
    finally:
        let_go.set()
    assert placed(await hangs) == ["s0"], "it answered nonsense in the end"


async def test_switching_the_policy_keeps_the_queue(manager: FakeManager) -> None:
    host = host_with(lambda _: None)
    before = await decide(host, manager)
    await host.configure("custom", "concentrated", {})
    failed = await decide(host, manager)
    await host.configure("lifo", "dispersed", {})
    after = await decide(host, manager)
    assert placed(before) == placed(failed) == ["s0", "s1", "s2", "s3"]
    assert (placed(after), after.warning) == (["s5", "s4", "s3", "s2"], "")

"""Sokovan's passes, with a fake Manager and real policy hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from actors.testing.sokovan import GROUP, FakeManager
from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter, SessionNotFound, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import Changes, Placement, Plan, Refusal, RefusalCode
from policies.testing import make_node, make_session
from tests.support.waiting import wait_until_async


async def no_report(handle: object) -> NodeReport:
    raise Unavailable("the node's report is gone")


class Hosts:
    """Makes policy hosts, and lets them die."""

    def __init__(self) -> None:
        self.hosts: dict[ResourceGroupName, PolicyHost] = {}
        self.connects = 0

    async def connect(self, group: ResourceGroupName) -> PolicyHost:
        self.connects += 1
        if group not in self.hosts:
            self.hosts[group] = PolicyHost(group, resolve=no_report)
        return self.hosts[group]


class DyingHost(PolicyHost):
    """Dies in the middle of a decision: the call fails, and what comes back under its name knows nothing."""

    async def decide(self, changes: Changes, now: float) -> Plan | None:
        raise Unavailable("policy:default is not reachable (ActorDiedError)")


@pytest.fixture
def manager() -> FakeManager:
    manager = FakeManager()
    manager.add_node(make_node("n0", cpu=4))
    return manager


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


Start = Callable[..., Any]


@pytest.fixture
async def start(manager: FakeManager, hosts: Hosts) -> AsyncIterator[Start]:
    started: list[Sokovan] = []

    async def begin(*, sweep_interval_s: float = 60.0, clock: Callable[[], float] = time.time) -> Sokovan:
        settings = Settings.model_validate({"scheduler": {"sweep_interval_s": sweep_interval_s}})
        sokovan = Sokovan(
            settings, manager=manager.as_contract(), connect_host=hosts.connect, clock=clock, random=Random(0)
        )
        started.append(sokovan)
        await sokovan.start()
        return sokovan

    yield begin
    for sokovan in started:
        await sokovan.stop()


async def until(condition: Callable[[], Any]) -> None:
    async def asked() -> Any:
        return condition()

    await wait_until_async(asked, timeout_s=10, interval_s=0.002)


async def at_rest(sokovan: Sokovan) -> None:
    """Wait until the first pass has ended."""
    await until(lambda: all(g.counters.last_pass_s for g in sokovan._groups.values()))


async def test_a_wake_places_what_waits(manager: FakeManager, start: Start) -> None:
    sokovan = await start()
    await at_rest(sokovan)
    manager.submit(make_session("s0"), make_session("s1"))
    await sokovan.wake(GROUP, "submitted")
    await until(lambda: manager.placed == ["s0", "s1"])
    stats = (await sokovan.stats())[GROUP]
    assert stats["placements"] == 2
    assert stats["failures"] == 0


async def test_the_first_pass_needs_no_wake(manager: FakeManager, start: Start) -> None:
    manager.submit(make_session("s0"))
    await start()
    await until(lambda: manager.placed == ["s0"])


async def test_many_wakes_are_few_passes(manager: FakeManager, start: Start) -> None:
    sokovan = await start()
    await at_rest(sokovan)
    before = manager.calls["changes"]
    manager.submit(make_session("s0"))
    for _ in range(100):
        await sokovan.wake(GROUP, "again")
    await until(lambda: manager.placed == ["s0"])
    assert manager.calls["changes"] - before <= 2


async def test_two_hundred_sessions_start_in_order_and_nothing_is_double_booked(
    manager: FakeManager, start: Start
) -> None:
    sokovan = await start()
    manager.submit(*(make_session(f"s{i:03}", cpu=1, mem="1g") for i in range(200)))
    await sokovan.wake(GROUP, "submitted")

    def enough(count: int) -> bool:
        return len(manager.placed) >= count

    await until(partial(enough, 4))
    for finished in range(200):
        manager.release(next(iter(manager.running)))
        await sokovan.wake(GROUP, "released")
        await until(partial(enough, min(200, finished + 5)))
    assert manager.placed == [f"s{i:03}" for i in range(200)]
    assert not manager.running
    assert manager.devices(make_node("n0").agent_id).free() == manager.devices(make_node("n0").agent_id).capacity()


async def test_rejected_lines_are_tried_again_at_once(manager: FakeManager, start: Start) -> None:
    manager.reject_next = 2
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: manager.placed == ["s0"])
    stats = (await sokovan.stats())[GROUP]
    assert (stats["rejections"], stats["failures"]) == (2, 0)


async def test_endless_rejections_lead_to_a_pause_and_not_to_a_storm(manager: FakeManager, start: Start) -> None:
    manager.reject_next = 9
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: manager.placed == ["s0"])
    stats = (await sokovan.stats())[GROUP]
    assert (stats["rejections"], stats["failures"]) == (9, 2)


async def test_a_manager_that_is_away_is_asked_again(manager: FakeManager, start: Start) -> None:
    manager.faults["changes"] = [Unavailable("manager is not reachable")] * 2
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: manager.placed == ["s0"])
    assert (await sokovan.stats())[GROUP]["failures"] == 2


async def test_a_lost_answer_to_apply_places_nothing_twice(manager: FakeManager, start: Start) -> None:
    manager.raise_after_apply = [Unavailable("manager did not answer apply within 30 s")]
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: manager.placed == ["s0"])
    manager.submit(make_session("s1"))
    await sokovan.wake(GROUP, "submitted")
    await until(lambda: manager.placed == ["s0", "s1"])
    assert len(manager.pass_ids) == 2


async def test_a_restarted_manager_sends_the_world_anew(manager: FakeManager, start: Start) -> None:
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: manager.placed == ["s0"])
    manager.restart()
    manager.submit(make_session("s1"))
    await sokovan.wake(GROUP, "restarted")
    await until(lambda: manager.placed == ["s0", "s1"])


async def test_a_host_that_came_back_empty_gets_its_policy_and_the_world(
    manager: FakeManager, hosts: Hosts, start: Start
) -> None:
    manager.configs[GROUP]["options"] = {"strict": False}
    sokovan = await start()
    await at_rest(sokovan)
    hosts.hosts[GROUP].__init__(GROUP, resolve=no_report)  # type: ignore[misc]  # the same name, a new process
    manager.submit(make_session("big", cpu=4, mem="1g"), make_session("big2", cpu=4, mem="1g"), make_session("s0"))
    manager.submit(make_session("s1", cpu=1, mem="1g"))
    manager.add_node(make_node("n1", cpu=2))
    await sokovan.wake(GROUP, "submitted")
    await until(lambda: manager.placed == ["big", "s0", "s1"])


async def test_a_host_that_dies_is_connected_again(manager: FakeManager, hosts: Hosts, start: Start) -> None:
    hosts.hosts[GROUP] = DyingHost(GROUP, resolve=no_report)
    manager.submit(make_session("s0"))
    sokovan = await start()
    await until(lambda: sokovan._groups[GROUP].counters.failures)
    del hosts.hosts[GROUP]
    await until(lambda: manager.placed == ["s0"])
    assert hosts.connects >= 2


async def test_a_lost_wake_costs_one_sweep(manager: FakeManager, start: Start) -> None:
    sokovan = await start(sweep_interval_s=0.05)
    await at_rest(sokovan)
    manager.submit(make_session("s0"))
    await until(lambda: manager.placed == ["s0"])


async def test_a_sweep_that_finds_nothing_new_decides_nothing(manager: FakeManager, start: Start) -> None:
    manager.submit(make_session("big", cpu=64, mem="1g"))
    sokovan = await start(sweep_interval_s=0.01)
    await until(lambda: sokovan._groups[GROUP].counters.skipped > 2)
    assert sokovan._groups[GROUP].counters.passes <= 2


async def test_a_start_time_is_kept_without_a_wake(manager: FakeManager, start: Start) -> None:
    began = time.time()
    manager.submit(make_session("later", starts_at=began + 0.2))
    await start()
    await until(lambda: manager.placed == ["later"])
    assert time.time() - began >= 0.2


async def test_refusals_are_told_to_the_manager_once(manager: FakeManager, start: Start) -> None:
    manager.submit(make_session("big", cpu=64, mem="1g"))
    sokovan = await start()
    await until(lambda: manager.notes)
    assert manager.notes[SessionId("big")].code is RefusalCode.TOO_LARGE
    await at_rest(sokovan)
    manager.submit(make_session("big2", cpu=64, mem="1g"))
    manager.notes.clear()
    await sokovan.wake(GROUP, "submitted")
    await until(lambda: manager.notes)
    assert set(manager.notes) == {"big2"}


async def test_explain_is_up_to_date(manager: FakeManager, start: Start) -> None:
    sokovan = await start()
    await at_rest(sokovan)
    manager.submit(make_session("s0", cpu=4, mem="1g"), make_session("s1", cpu=2, mem="1g"))
    outcome = (await sokovan.explain(GROUP, SessionId("s1"))).outcome
    assert isinstance(outcome, Refusal)
    assert outcome.message == "needs cpu 2, mem 1g; the closest node n0 is short by cpu 2"
    assert [refusal.agent_id for refusal in outcome.nodes] == ["n0"]
    assert manager.placed == ["s0"], "explaining ran a pass"
    with pytest.raises(SessionNotFound):
        await sokovan.explain(GROUP, SessionId("s0"))
    with pytest.raises(InvalidParameter, match="no resource group"):
        await sokovan.explain(ResourceGroupName("nowhere"), SessionId("s1"))


async def test_groups_come_change_and_go(manager: FakeManager, hosts: Hosts, start: Start) -> None:
    other = ResourceGroupName("other")
    sokovan = await start()
    await at_rest(sokovan)
    manager.configs[other] = {"policy": "lottery", "selection": "concentrated", "options": {}}
    await sokovan.wake(other, "submitted")
    await until(lambda: other in sokovan._groups)
    await until(lambda: sokovan._groups[other].counters.warning)
    assert "policy lottery cannot be used" in (await sokovan.stats())[other]["warning"]
    manager.configs[other] = {"policy": "fifo", "selection": "dispersed", "options": {}}
    await sokovan.wake(ResourceGroupName("unknown"), "look again")
    await until(lambda: not sokovan._groups[other].counters.warning)
    del manager.configs[other]
    await sokovan.wake(other, "")
    await sokovan.wake(ResourceGroupName("unknown"), "look again")
    await until(lambda: other not in sokovan._groups)
    assert set(await sokovan.stats()) == {GROUP}


async def test_start_fails_while_there_is_no_manager_and_may_be_repeated(manager: FakeManager, start: Start) -> None:
    manager.faults["groups"] = [Unavailable("manager is not reachable")]
    with pytest.raises(Unavailable):
        await start()
    sokovan = await start()
    await sokovan.start()
    manager.submit(make_session("s0"))
    await sokovan.wake(GROUP, "submitted")
    await until(lambda: manager.placed == ["s0"])


async def test_passes_and_explanations_of_a_group_never_overlap(manager: FakeManager, start: Start) -> None:
    """The fake asserts that no two plans are applied at a time."""
    sokovan = await start()
    for number in range(20):
        manager.submit(make_session(f"s{number}", cpu="0.1", mem="64m"), make_session(f"w{number}", cpu=64, mem="1g"))
        await sokovan.wake(GROUP, "submitted")
        outcomes = await asyncio.gather(
            *(sokovan.explain(GROUP, SessionId(f"w{number}")) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(one, Explanation) and isinstance(one.outcome, Refusal) for one in outcomes), outcomes
    await until(lambda: len(manager.placed) == 20)
    assert not any(isinstance(kernel, Placement) for kernel in manager.running.values())

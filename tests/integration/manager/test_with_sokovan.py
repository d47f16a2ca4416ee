"""Manager, Sokovan, policy actor and the real policy together in one process; only the agents are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from actors.contracts import PolicyHostContract
from actors.manager import Manager
from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from actors.testing import OWNER, FakeAgent, FakeCluster
from backendai_ray.config import ManagerSettings, Settings
from backendai_ray.core.errors import AgentUnavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import Refusal
from backendai_ray.core.sessions import SessionType, Status
from backendai_ray.core.slots import CPU, ResourceSlots
from backendai_ray.store import Store
from tests.support.waiting import wait_until_async


class WakesLater:
    """Stands for Sokovan until it is there: the two need each other."""

    target: Sokovan

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        await self.target.wake(group, why)


class RealCluster(FakeCluster):
    """A fake cluster whose scheduler is the real one, and whose Manager minds itself."""

    def __init__(self, *agents: FakeAgent, store_url: str) -> None:
        self.later = WakesLater()
        fast = Settings(manager=ManagerSettings(sweep_interval_s=0.5))
        super().__init__(*agents, settings=fast, open_store=partial(Store.open, store_url))

    def _new_manager(self) -> Manager:
        return Manager(
            self.settings,
            connect_agent=self._connect_real,
            sokovan=self.later,  # type: ignore[arg-type]
            resolve_report=self._resolve,
            open_store=self._open_store,
            open_relay=lambda _: None,
        )

    def _connect_real(self, agent_id: AgentId) -> FakeAgent:
        if agent_id not in self.agents:
            raise AgentUnavailable(f"there is no agent {agent_id}")
        return self.agents[agent_id]

    async def connect_host(self, group: ResourceGroupName) -> PolicyHostContract:
        async def resolve(report: object) -> NodeReport:
            assert isinstance(report, NodeReport)
            return report

        return PolicyHost(group, resolve=resolve)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RealCluster]:
    agent = FakeAgent("a1", cores=8)
    agent.is_quick = True
    real = RealCluster(agent, store_url=f"sqlite:///{tmp_path / 'store.db'}")
    real.later.target = Sokovan(real.settings, manager=real.manager, connect_host=real.connect_host)
    await real.manager.start()
    await real.later.target.start()
    await real.introduce(agent)
    yield real
    await real.check()
    await real.later.target.stop()
    await real.kill()


async def test_from_submit_to_running_and_back(cluster: RealCluster) -> None:
    for _ in range(20):
        session = (await cluster.submit()).session
        running = await cluster.manager.wait(session.id, ["RUNNING"], 10)
        assert running.status is Status.RUNNING
        await cluster.terminate(running)
        ended = await cluster.manager.wait(session.id, [], 10)
        assert ended.status is Status.TERMINATED


async def test_two_hundred_with_room_for_eight_drain_by_themselves(cluster: RealCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    real_create = agent.run_startup

    async def finish_at_once(kernel_id: str, command: str, timeout_s: float | None) -> None:
        await real_create(kernel_id, command, timeout_s)  # type: ignore[arg-type]
        agent.finish_startup(kernel_id, 0)  # type: ignore[arg-type]
        await cluster.tell(agent, [agent.kernels[kernel_id]])  # type: ignore[index]

    agent.run_startup = finish_at_once  # type: ignore[method-assign,assignment]
    submitted = await asyncio.gather(
        *(cluster.submit(type=SessionType.BATCH, startup_command="true") for _ in range(200))
    )
    ended = await asyncio.gather(*(cluster.manager.wait(one.session.id, [], 60) for one in submitted))
    assert {session.status for session in ended} == {Status.TERMINATED}
    assert {session.result.value for session in ended} == {"success"}
    await wait_until_async(partial(_nothing_left, agent))
    assert not (await cluster.manager.agents())[0].occupied


async def _nothing_left(agent: FakeAgent) -> bool:
    return not agent.kernels


async def test_what_waits_says_why_and_goes_on_when_there_is_room(cluster: RealCluster) -> None:
    big = {"slots": ResourceSlots({CPU: 8000})}
    first = (await cluster.submit(**big)).session
    await cluster.manager.wait(first.id, ["RUNNING"], 10)
    second = (await cluster.submit(**big)).session
    verdict = (await cluster.later.target.explain(second.spec.resource_group, second.id)).outcome
    assert isinstance(verdict, Refusal)

    async def says_why() -> bool:
        return verdict.message == (await cluster.get(second.id)).message

    await wait_until_async(says_why)
    await cluster.terminate(first)
    assert (await cluster.manager.wait(second.id, ["RUNNING"], 10)).status is Status.RUNNING


async def test_a_node_that_grows_wakes_those_who_wait(cluster: RealCluster) -> None:
    agent = cluster.agents[AgentId("a1")]
    gang = (await cluster.submit(cluster_size=8)).session
    await cluster.manager.wait(gang.id, ["RUNNING"], 10)
    waits = (await cluster.submit()).session
    other = FakeAgent("a2")
    other.is_quick = True
    other.tell = partial(cluster.tell, other)
    cluster.agents[other.agent_id] = other
    await cluster.introduce(other)
    assert (await cluster.manager.wait(waits.id, ["RUNNING"], 10)).main.agent_id == "a2"
    agent.version += 1
    sick = replace(agent.report(), health="unwell")
    await cluster.manager.node_report(agent.agent_id, agent.incarnation, agent.version, sick, ready=True)
    page = await cluster.manager.sessions(OWNER, statuses=["RUNNING"], limit=10, offset=0)
    assert page.total == 2

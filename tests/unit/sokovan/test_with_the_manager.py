"""The real Manager, the real Sokovan and the real policy host together; only the nodes are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from actors.contracts import SubmitRequest
from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from actors.testing import FakeAgent, FakeCluster
from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import Placement, Refusal, RefusalCode
from backendai_ray.core.sessions import ClusterMode, Session, Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots
from tests.support.waiting import wait_until_async

GROUP = ResourceGroupName("default")
GIB = 2**30


async def resolve(handle: object) -> NodeReport:
    assert isinstance(handle, NodeReport)
    return handle


class CurrentManager:
    """Whatever Manager the cluster has now, as a named actor would be found."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def __getattr__(self, method: str) -> Any:
        return getattr(self._cluster.manager, method)


class Everything:
    """A cluster with its scheduler; every part of it can be replaced by a fresh one."""

    def __init__(self, *agents: FakeAgent, settings: Settings | None = None) -> None:
        self.cluster = FakeCluster(*agents, settings=settings)
        self.agents = agents
        self.host = PolicyHost(GROUP, resolve=resolve)
        self.sokovan = self._new_sokovan()

    def _new_sokovan(self) -> Sokovan:
        async def connect(group: ResourceGroupName) -> PolicyHost:
            return self.host

        settings = Settings.model_validate({"scheduler": {"sweep_interval_s": 0.2}})
        manager: Any = CurrentManager(self.cluster)
        return Sokovan(settings, manager=manager, connect_host=connect, clock=self.cluster.clock, random=Random(0))

    async def start(self) -> None:
        async def wake(group: ResourceGroupName, why: str) -> None:
            await self.sokovan.wake(group, why)

        self.cluster.sokovan.wake = wake  # type: ignore[method-assign]
        await self.cluster.start()
        await self.sokovan.start()

    async def replace_host(self) -> None:
        self.host = PolicyHost(GROUP, resolve=resolve)
        # The name is the same: Sokovan notices only by the answers.
        self.sokovan._groups[GROUP]._host = self.host

    async def replace_sokovan(self) -> None:
        await self.sokovan.stop()
        self.sokovan = self._new_sokovan()
        await self.sokovan.start()

    async def sessions(self, *statuses: Status) -> list[Session]:
        page = await self.cluster.manager.sessions(
            None, statuses=[status.value for status in statuses], limit=1000, offset=0
        )
        return list(page.sessions)

    def started(self) -> set[str]:
        return {spec.session_id for agent in self.agents for spec in agent.specs.values()}


@pytest.fixture
async def everything() -> AsyncIterator[Everything]:
    agents = [FakeAgent("a1"), FakeAgent("a2")]
    for agent in agents:
        agent.is_quick = True
    one = Everything(*agents)
    await one.start()
    yield one
    await one.sokovan.stop()
    await one.cluster.settle()
    await one.cluster.check()
    await one.cluster.kill()


async def test_two_hundred_sessions_with_room_for_eight_all_run_in_order(everything: Everything) -> None:
    """The Manager, Sokovan and the policy host are replaced on the way."""
    cluster = everything.cluster
    waiting = [(await cluster.submit()).session.id for _ in range(200)]
    disasters = {50: cluster.restart, 100: everything.replace_sokovan, 150: everything.replace_host}
    ended = 0
    while ended < 200:

        async def eight_run(goal: int = min(200, ended + 8), ended: int = ended) -> bool:
            return len(everything.started()) >= goal and len(await everything.sessions(Status.RUNNING)) == goal - ended

        await wait_until_async(eight_run, timeout_s=20, interval_s=0.001)
        assert everything.started() == set(waiting[: min(200, ended + 8)]), "somebody was overtaken"
        (first, *_) = sorted(await everything.sessions(Status.RUNNING), key=lambda s: s.id)
        await cluster.terminate(first)
        ended += 1
        if ended in disasters:
            await disasters[ended]()
    await cluster.settle()
    assert all(agent._held.free() == agent._held.capacity() for agent in everything.agents)


async def test_a_gang_waits_whole_and_is_explained_node_by_node(everything: Everything) -> None:
    cluster = everything.cluster
    three = ResourceSlots([(CPU, 3000), (MEM, GIB)])
    blocker = (await cluster.submit(slots=three)).session
    gang = (await cluster.submit(slots=three, cluster_size=2, cluster_mode=ClusterMode.MULTI_NODE)).session
    refusal = (await everything.sokovan.explain(GROUP, gang.id)).outcome
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.GANG
    assert [one.agent_id for one in refusal.nodes] == ["a1"]
    assert not everything.started() & {gang.id}
    await cluster.terminate(await cluster.get(blocker.id))

    async def gang_runs() -> bool:
        return (await cluster.get(gang.id)).status is Status.RUNNING

    await wait_until_async(gang_runs, timeout_s=10, interval_s=0.001)
    assert {kernel.agent_id for kernel in (await cluster.get(gang.id)).kernels} == {"a1", "a2"}


async def test_one_session_from_submit_to_order_takes_milliseconds(everything: Everything) -> None:
    """Generous, since the machine may be busy: what it guards against is a poll on the way."""
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    for _ in range(20):
        began = loop.time()
        session_id: SessionId = (await everything.cluster.submit(slots=ResourceSlots([(CPU, 100)]))).session.id

        async def ordered(wanted: SessionId = session_id) -> bool:
            return wanted in everything.started()

        await wait_until_async(ordered, timeout_s=10, interval_s=0.0005)
        waits.append(loop.time() - began)
    assert sorted(waits)[len(waits) // 2] < 0.1, waits


@pytest.mark.parametrize("cpu", [1000, 3000, 4000])
async def test_a_rehearsal_is_what_submitting_leads_to(everything: Everything, cpu: int) -> None:
    """Through the whole of it: the Manager's checks, a pass, the policy; and nothing is left of the rehearsal."""
    cluster = everything.cluster
    await cluster.submit(slots=ResourceSlots([(CPU, 2000), (MEM, GIB)]))
    slots = ResourceSlots([(CPU, cpu), (MEM, GIB)])
    asked = cluster.spec("asked", slots=slots, cluster_size=2, cluster_mode=ClusterMode.MULTI_NODE)
    rehearsed = await cluster.manager.rehearse(SubmitRequest(spec=asked))
    assert rehearsed.session is not None
    explanation = await everything.sokovan.rehearse(GROUP, rehearsed.session)
    assert len(cluster.store.records) == 1, "nothing was submitted"
    session = (await cluster.manager.submit(SubmitRequest(spec=asked))).session
    if isinstance(explanation.outcome, Placement):

        async def runs() -> bool:
            return (await cluster.get(session.id)).status is Status.RUNNING

        await wait_until_async(runs, timeout_s=10, interval_s=0.001)
        where = [(kernel.agent_id, kernel.allocation) for kernel in explanation.outcome.kernels]
        assert [(k.agent_id, k.allocation) for k in (await cluster.get(session.id)).kernels] == where
    else:
        told = (await everything.sokovan.explain(GROUP, session.id)).outcome
        assert isinstance(told, Refusal)
        assert (told.code, told.message) == (explanation.outcome.code, explanation.outcome.message)


async def test_rehearsing_in_a_group_that_is_not_there(everything: Everything) -> None:
    rehearsed = await everything.cluster.manager.rehearse(SubmitRequest(spec=everything.cluster.spec()))
    assert rehearsed.session is not None
    with pytest.raises(InvalidParameter, match="no resource group"):
        await everything.sokovan.rehearse(ResourceGroupName("nowhere"), rehearsed.session)

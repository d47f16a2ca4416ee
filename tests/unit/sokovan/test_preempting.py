"""Preemption through Manager, Sokovan and policy host together; only the node is a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.testing import FakeAgent
from backendai_ray.config import Settings
from backendai_ray.core.scheduling import Refusal, RefusalCode
from backendai_ray.core.sessions import Reason, Session, SessionType, Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots
from tests.support.waiting import wait_until_async

from .test_with_the_manager import GIB, GROUP, Everything

OPTIONS = {"preemption": {"scope": "group", "min_runtime_s": 0, "grace_s": 7}, "strict": False}


@pytest.fixture
async def everything() -> AsyncIterator[Everything]:
    one = Everything(FakeAgent("a1"), settings=Settings.model_validate({"scheduler": {"options": OPTIONS}}))
    await one.start()
    yield one
    await one.sokovan.stop()
    await one.cluster.settle()
    await one.cluster.check()
    await one.cluster.kill()


async def submit(everything: Everything, cores: int, priority: int) -> Session:
    slots = ResourceSlots([(CPU, 1000 * cores), (MEM, GIB)])
    batch: dict[str, Any] = {"type": SessionType.BATCH, "startup_command": "true", "slots": slots}
    return (await everything.cluster.submit(priority=priority, **batch)).session


async def until(everything: Everything, session: Session, status: Status) -> Session:
    async def there() -> bool:
        return (await everything.cluster.get(session.id)).status is status

    await wait_until_async(there, timeout_s=10, interval_s=0.001)
    await everything.cluster.settle()
    return await everything.cluster.get(session.id)


async def start(everything: Everything, session: Session) -> Session:
    placed = await until(everything, session, Status.SCHEDULED)
    (agent,) = [agent for agent in everything.agents if agent.agent_id == placed.main.agent_id]
    await everything.cluster.tell(agent, [agent.start(kernel.id) for kernel in placed.kernels])
    return await until(everything, session, Status.RUNNING)


async def test_two_make_room_for_one_which_nobody_else_gets(everything: Everything) -> None:
    """The Manager is killed while the victims end, and once more when one of them has ended."""
    cluster, (agent,) = everything.cluster, everything.agents
    low = [await start(everything, await submit(everything, 2, 10)) for _ in range(2)]
    high = await submit(everything, 4, 50)
    for victim in low:
        await until(everything, victim, Status.TERMINATING)
    assert {agent.graces[victim.main.id] for victim in low} == {7.0}
    await cluster.restart()
    late = await submit(everything, 1, 50)
    await cluster.tell(agent, [agent.end(low[0].main.id, Reason.PREEMPTED)])
    await until(everything, low[0], Status.PENDING)
    await cluster.restart()
    explanation = await everything.sokovan.explain(GROUP, high.id)
    refusal = explanation.outcome
    assert isinstance(refusal, Refusal)
    assert explanation.estimate.message == "as soon as sessions are gone that are being ended"
    assert (refusal.code, low[1].id in refusal.message) == (RefusalCode.AWAITS_ROOM, True)
    assert (await cluster.get(late.id)).status is Status.PENDING
    await cluster.tell(agent, [agent.end(low[1].main.id, Reason.PREEMPTED)])
    await start(everything, high)
    assert {(await cluster.get(one.id)).preemptions for one in low} == {1}
    await cluster.terminate(await cluster.get(high.id))
    await cluster.tell(agent, [agent.end(high.main.id, Reason.USER_REQUESTED)])
    await start(everything, late)
    await start(everything, low[0])
    assert (await cluster.get(low[1].id)).status is Status.PENDING

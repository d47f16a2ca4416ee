"""Fleeting messages reach who listens, and nobody waits for them."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from actors.agent.measuring.telling import UsageTeller
from backendai_ray.bus import USAGE, Bus, Fleeting
from backendai_ray.bus.fleeting import LINE_LENGTH
from backendai_ray.config import BusSettings
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.measurements import KernelUsage, NodeUsage
from backendai_ray.records import from_plain
from tests.support.waiting import wait_until_async

from .builders import take
from .servers import OwnServer


async def _subscribers(bus: Bus, channel: str, count: int) -> None:
    async def are_there() -> bool:
        found = await bus.client.pubsub_numsub(bus.key(channel))
        return int(found[0][1]) == count

    await wait_until_async(are_there)


async def test_everyone_who_listens_hears(bus: Bus) -> None:
    fleeting = Fleeting(bus)
    ears = [asyncio.create_task(take(fleeting.hear("pull-progress"), 3)) for _ in range(2)]
    await _subscribers(bus, "pull-progress", 2)
    for current in range(3):
        fleeting.tell("pull-progress", {"current": current, "image": "grüße"})
        fleeting.tell("other", {"not": "heard"})
    async with asyncio.timeout(5):
        for heard in await asyncio.gather(*ears):
            assert heard == [{"current": n, "image": "grüße"} for n in range(3)]
    await _subscribers(bus, "pull-progress", 0)
    await fleeting.close()


async def test_silence_is_told(bus: Bus) -> None:
    ear = Fleeting(bus).hear("pull-progress", idle_s=0.02)
    assert await anext(ear) is None
    assert await anext(ear) is None
    await ear.aclose()


async def test_nonsense_is_passed_over(bus: Bus) -> None:
    fleeting = Fleeting(bus)
    ear = asyncio.create_task(take(fleeting.hear("c"), 1))
    await _subscribers(bus, "c", 1)
    await bus.client.publish(bus.key("c"), "no json")
    await bus.client.publish(bus.key("c"), "[1]")
    fleeting.tell("c", {"x": 1})
    async with asyncio.timeout(5):
        assert await ear == [{"x": 1}]
    await fleeting.close()


async def test_telling_never_waits_and_never_fails() -> None:
    async with Bus("redis://127.0.0.1:1") as bus:
        fleeting = Fleeting(bus)
        for number in range(3 * LINE_LENGTH):
            fleeting.tell("c", {"number": number})
        assert len(fleeting._line) == LINE_LENGTH
        await wait_until_async(lambda: asyncio.sleep(0, not fleeting._line))
        await fleeting.close()


@pytest.mark.kill
async def test_hearing_outlives_the_server(own_server: OwnServer, own_bus: Bus) -> None:
    fleeting = Fleeting(own_bus)
    ear = fleeting.hear("c", idle_s=0.05)
    assert await anext(ear) is None
    own_server.kill()
    assert await anext(ear) is None
    own_server.start()

    async def told_again() -> list[object]:
        heard: list[object] = []
        async for message in ear:
            fleeting.tell("c", {"after": "restart"})
            if message is not None:
                heard.append(message)
                return heard
        return heard

    async with asyncio.timeout(10):
        assert await told_again() == [{"after": "restart"}]
    await ear.aclose()
    await fleeting.close()


async def test_an_agents_measurements_are_heard(bus: Bus, bus_url: str) -> None:
    ear = asyncio.create_task(take(Fleeting(bus).hear(USAGE), 1))
    await _subscribers(bus, USAGE, 1)
    teller = UsageTeller(BusSettings(url=SecretStr(bus_url)))
    kernel = KernelUsage(
        kernel_id=KernelId("k"), session_id=SessionId("s"), session_name="grüße", hostname="main1", cpu_used=0.5
    )
    usage = NodeUsage(agent_id=AgentId("node"), measured_at=1.0, kernels=(kernel,))
    teller.tell(usage)
    async with asyncio.timeout(5):
        (heard,) = await ear
    assert from_plain(heard, NodeUsage) == usage
    await teller.close()

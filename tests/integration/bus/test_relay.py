"""From commits to the stream: in order, nothing missing, whatever the bus does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backendai_ray.bus import Bus, EventStream, OutboxRelay
from backendai_ray.bus.backoff import Backoff
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.sessions import Status
from backendai_ray.store import OutboxEvent, Store
from tests.integration.store.builders import new_session, submission
from tests.support.waiting import wait_until_async

from .builders import committed
from .servers import OwnServer


class FakeStore:
    """An outbox in memory."""

    def __init__(self, identity: str = "one") -> None:
        self.identity = identity
        self.events: list[OutboxEvent] = []
        self.is_away = False
        self.asked = 0

    def commit(self, count: int = 1, first: int | None = None) -> None:
        first = first or (self.events[-1].number + 1 if self.events else 1)
        self.events += [committed(first + n, Status.RUNNING) for n in range(count)]

    async def outbox(self, after: int = 0, limit: int = 500) -> list[OutboxEvent]:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable
        return [event for event in self.events if event.number > after][:limit]

    async def trim_outbox(self, upto: int) -> None:
        self.events = [event for event in self.events if event.number > upto]


@asynccontextmanager
async def running(source: Any, bus: Bus) -> AsyncIterator[tuple[OutboxRelay, EventStream]]:
    stream = EventStream(bus)
    relay = OutboxRelay(source, stream, backoff=Backoff(first_s=0.01, most_s=0.1))
    task = asyncio.create_task(relay.run())
    try:
        yield relay, stream
    finally:
        assert not task.done(), "the relay raised into its owner"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ids(stream: EventStream) -> list[str]:
    return [entry_id for entry_id, _ in await stream.bus.client.xrange(stream.key)]


async def _wait_for(stream: EventStream, last: int) -> None:
    async def arrived() -> bool:
        ends = await stream.ends()
        return ends is not None and ends[1] == f"{last}-0"

    await wait_until_async(arrived, timeout_s=20)


def _numbers(first: int, last: int) -> list[str]:
    return [f"{number}-0" for number in range(first, last + 1)]


async def test_committed_events_arrive(tmp_path: Path, bus: Bus) -> None:
    async with await Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store, running(store, bus) as (relay, stream):
        for _ in range(3):
            await store.commit(submission(new_session()))
            relay.wake()
        await _wait_for(stream, 3)
        assert await _ids(stream) == _numbers(1, 3)

        async def is_trimmed() -> bool:
            return not await store.outbox()

        await wait_until_async(is_trimmed)
        assert relay.shipped == 3


async def test_it_does_not_poll(bus: Bus) -> None:
    source = FakeStore()
    async with running(source, bus) as (relay, stream):
        source.commit()
        relay.wake()
        await _wait_for(stream, 1)

        async def is_trimmed() -> bool:
            return not source.events

        await wait_until_async(is_trimmed)
        asked = source.asked
        await asyncio.sleep(0.3)  # time in which it could ask
        assert source.asked == asked


async def test_a_large_outbox_is_shipped_in_pages(bus: Bus) -> None:
    source = FakeStore()
    source.commit(5200)
    async with running(source, bus) as (_, stream):
        await _wait_for(stream, 5200)
        assert await _ids(stream) == _numbers(1, 5200)
        assert len(source.events) <= 2000


async def test_a_new_relay_ships_nothing_twice(bus: Bus) -> None:
    source = FakeStore()
    source.commit(5)
    async with running(source, bus) as (_, stream):
        await _wait_for(stream, 5)
    source.commit(2, first=6)
    async with running(source, bus) as (_, stream):
        await _wait_for(stream, 7)
        assert await _ids(stream) == _numbers(1, 7)


async def test_a_fresh_store_begins_a_fresh_stream(bus: Bus) -> None:
    old, new = FakeStore(), FakeStore("two")
    old.commit(9)
    async with running(old, bus) as (_, stream):
        await _wait_for(stream, 9)
    new.commit(2)
    async with running(new, bus) as (_, stream):
        await _wait_for(stream, 2)
        assert await _ids(stream) == _numbers(1, 2)


@pytest.mark.kill
async def test_events_wait_for_the_bus(own_server: OwnServer, own_bus: Bus) -> None:
    source = FakeStore()
    async with running(source, own_bus) as (relay, stream):
        source.commit(3)
        relay.wake()
        await _wait_for(stream, 3)
        own_server.kill()
        for _ in range(20):
            source.commit()
            relay.wake()

        async def noticed() -> bool:
            return relay.is_behind

        await wait_until_async(noticed)
        own_server.start()
        await _wait_for(stream, 23)
        ids = await _ids(stream)
        assert ids == _numbers(int(ids[0].split("-")[0]), 23)
        assert int(ids[0].split("-")[0]) <= 4
        await wait_until_async(lambda: asyncio.sleep(0, not relay.is_behind))


@pytest.mark.kill
async def test_a_server_that_forgot_everything_gets_the_last_events_again(own_server: OwnServer, own_bus: Bus) -> None:
    """The bus dies and comes back between two commits, and nobody noticed: the next publish finds out."""
    source = FakeStore()
    stream = EventStream(own_bus)
    relay = OutboxRelay(source, stream)
    source.commit(3)
    assert await relay.step() == 3
    own_server.kill()
    own_server.start()
    source.commit(2)
    async with running(source, own_bus):
        await _wait_for(stream, 5)
    assert await _ids(stream) == _numbers(1, 5)


async def test_the_store_may_be_away_too(bus: Bus) -> None:
    source = FakeStore()
    source.commit(2)
    source.is_away = True
    async with running(source, bus) as (relay, stream):

        async def noticed() -> bool:
            return relay.is_behind

        await wait_until_async(noticed)
        source.is_away = False
        await _wait_for(stream, 2)


async def test_an_impossible_event_does_not_kill_it(bus: Bus) -> None:
    source = FakeStore()
    source.commit(1)
    broken = replace(source.events[0], change=None)  # type: ignore[arg-type]
    whole, source.events = source.events, [broken]
    async with running(source, bus) as (relay, stream):

        async def noticed() -> bool:
            return relay.is_behind

        await wait_until_async(noticed)
        source.events = whole
        await _wait_for(stream, 1)

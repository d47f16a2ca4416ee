"""Publishing once, following from any id, and knowing when something is missing."""

from __future__ import annotations

import asyncio

import pytest

from backendai_ray.bus import Bus, ConsumerGroup, Entry, EventStream, Gap, events_of
from backendai_ray.core.errors import BusUnavailable, InvalidParameter
from backendai_ray.core.sessions import Reason, Status

from .builders import committed, event, events, take
from .servers import OwnServer


def _ids(items: list[Entry | Gap]) -> list[object]:
    return [item.id if isinstance(item, Entry) else item for item in items]


async def test_events_come_back_as_they_were(stream: EventStream) -> None:
    both = events_of(committed(1, Status.TERMINATING, Reason.TASK_FINISHED))
    assert await stream.publish(both) == 2
    found = await take(stream.tail("0"), 2)
    assert found == [Entry("1-0", both[0]), Entry("1-1", both[1])]
    assert [item.event.name for item in found if isinstance(item, Entry)] == ["session_success", "session_terminating"]


async def test_publishing_twice_is_harmless(stream: EventStream) -> None:
    assert await stream.publish(events(1, 5)) == 5
    assert await stream.publish(events(3, 8)) == 3
    assert await stream.publish(events(1, 8)) == 0
    assert _ids(await take(stream.tail("0"), 8)) == [f"{n}-0" for n in range(1, 9)]


async def test_a_stream_of_another_store_is_dropped(stream: EventStream, bus: Bus) -> None:
    await stream.publish(events(1, 9))
    other = EventStream(bus)
    with pytest.raises(BusUnavailable, match="not of this store"):
        await other.publish(events(1, 1))
    await other.adopt("two")
    assert await other.publish(events(1, 2)) == 2
    with pytest.raises(BusUnavailable, match="not of this store"):
        await stream.publish(events(10, 10))
    assert await other.ends() == ("1-0", "2-0")


async def test_tail_follows_what_is_published_from_now_on(stream: EventStream) -> None:
    await stream.publish(events(1, 3))
    tail = stream.tail(idle_s=0.01)
    assert await anext(tail) is None
    await stream.publish(events(4, 5))
    assert _ids(await take(tail, 2)) == ["4-0", "5-0"]


async def test_tail_of_an_empty_stream_misses_nothing(stream: EventStream) -> None:
    tail = stream.tail(idle_s=0.01)
    assert await anext(tail) is None
    await stream.publish(events(1, 1))
    assert _ids(await take(tail, 1)) == ["1-0"]


async def test_tail_wakes_at_once(stream: EventStream) -> None:
    waiting = asyncio.create_task(take(stream.tail("0", idle_s=30), 1))
    await asyncio.sleep(0.05)  # most likely blocked by now; nothing depends on it
    await stream.publish(events(1, 1))
    async with asyncio.timeout(5):
        assert _ids(await waiting) == ["1-0"]


async def test_last_event_id(stream: EventStream) -> None:
    await stream.publish(events(1, 5))
    assert _ids(await take(stream.tail("3-0"), 2)) == ["4-0", "5-0"]
    assert _ids(await take(stream.tail("nonsense"), 1)) == ["1-0"]


async def test_a_gap_is_told_when_the_id_was_trimmed(bus: Bus) -> None:
    stream = EventStream(bus, max_length=100)
    await stream.adopt("one")
    await stream.publish(events(1, 1000))
    ends = await stream.ends()
    assert ends is not None
    assert ends[1] == "1000-0"
    first = int(ends[0].split("-")[0])
    assert 1 < first < 950
    gap, entry = await take(stream.tail("1-0"), 2)
    assert gap == Gap("1-0", f"{first}-0")
    assert _ids([entry]) == [f"{first}-0"]
    assert _ids(await take(stream.tail(f"{first}-0"), 1)) == [f"{first + 1}-0"]


async def test_a_gap_is_told_when_it_opens_later(stream: EventStream) -> None:
    tail = stream.tail("0", idle_s=0.05)
    await stream.publish(events(1, 2))
    assert _ids(await take(tail, 2)) == ["1-0", "2-0"]
    await stream.publish(events(7, 8))
    assert _ids(await take(tail, 3)) == [Gap("2-0", "7-0"), "7-0", "8-0"]


async def test_an_id_that_is_yet_to_come_is_a_gap(stream: EventStream) -> None:
    await stream.publish(events(1, 2))
    assert _ids(await take(stream.tail("99-0"), 2)) == [Gap("99-0", "1-0"), "1-0"]


async def test_foreign_entries_are_passed_over(stream: EventStream, bus: Bus) -> None:
    await bus.client.xadd(stream.key, {"what": "else"}, id="1-0")
    await bus.client.xadd(stream.key, {"data": "{}"}, id="2-0")
    await stream.publish(events(3, 3))
    assert _ids(await take(stream.tail("0"), 1)) == ["3-0"]


# ── consumer groups ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_event_goes_to_one_member(stream: EventStream) -> None:
    members = [ConsumerGroup(stream, "hooks", name) for name in ("a", "b")]
    for member in members:
        await member.create()
    await stream.publish(events(1, 10))
    first = await members[0].read(limit=4)
    second = await members[1].read()
    assert _ids([*first, *second]) == [f"{n}-0" for n in range(1, 11)]
    await members[0].acknowledge(first)
    await members[1].acknowledge(second)
    assert await members[0].read() == []


async def test_what_a_dead_member_left_is_claimed(stream: EventStream) -> None:
    dead = ConsumerGroup(stream, "hooks", "dead")
    await dead.create()
    await stream.publish(events(1, 3))
    left = await dead.read(limit=2)
    assert len(left) == 2
    patient = ConsumerGroup(stream, "hooks", "patient", claim_after_s=60)
    assert _ids(await patient.read()) == ["3-0"]
    heir = ConsumerGroup(stream, "hooks", "heir", claim_after_s=0.001)
    async with asyncio.timeout(5):
        claimed: list[Entry] = []
        while len(claimed) < 2:
            claimed += [entry for entry in await heir.read() if entry in left]
    assert claimed[:2] == left


async def test_an_event_that_always_fails_is_put_aside(stream: EventStream, bus: Bus) -> None:
    member = ConsumerGroup(stream, "hooks", "a", claim_after_s=0.01, max_deliveries=3)
    await member.create()
    handled: list[str] = []
    tries: list[str] = []

    async def handle(entry: Entry) -> None:
        tries.append(entry.id)
        if entry.id == "2-0":
            raise ValueError("cannot be handled")
        handled.append(entry.id)

    running = asyncio.create_task(member.run(handle, wait_s=0.02))
    await stream.publish(events(1, 3))
    async with asyncio.timeout(10):
        while not await bus.client.exists(member.dead_letters):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sorted(handled) == ["1-0", "3-0"]
    assert tries.count("2-0") == 3
    ((_, letter),) = await bus.client.xrange(member.dead_letters)
    assert letter["dead_id"] == "2-0"
    assert "3 times" in letter["dead_why"]
    assert (await bus.client.xpending(stream.key, "hooks"))["pending"] == 0


async def test_a_group_that_was_lost_is_made_again(stream: EventStream, bus: Bus) -> None:
    member = ConsumerGroup(stream, "hooks", "a")
    await stream.publish(events(1, 2))
    assert _ids(await member.read()) == ["1-0", "2-0"]
    await bus.client.flushall()
    assert await member.read() == []
    await stream.adopt("one")
    await stream.publish(events(3, 3))
    assert _ids(await member.read()) == ["3-0"]


async def test_a_foreign_entry_is_put_aside(stream: EventStream, bus: Bus) -> None:
    member = ConsumerGroup(stream, "hooks", "a")
    await member.create()
    await bus.client.xadd(stream.key, {"what": "else"}, id="1-0")
    assert await member.read() == []
    assert await bus.client.xlen(member.dead_letters) == 1


# ── when the server is not well ────────────────────────────────────────────────────────────────────────────────────


async def test_everything_says_so_when_the_bus_is_away() -> None:
    async with Bus("redis://127.0.0.1:1") as bus:
        stream = EventStream(bus)
        for call in (bus.ping(), stream.publish([event(1)]), stream.ends(), stream.adopt("one"), stream.read("0")):
            with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1 is not reachable"):
                await call
        assert await anext(stream.tail()) is None


async def test_a_frozen_server_does_not_hang_anyone(own_server: OwnServer, own_bus: Bus) -> None:
    stream = EventStream(own_bus)
    await stream.adopt("one")
    own_server.freeze()
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(BusUnavailable, match="in time"):
        await stream.publish(events(1, 1))
    assert loop.time() - started < 3
    own_server.thaw()
    await stream.publish(events(1, 2))
    assert await stream.ends() == ("1-0", "2-0")


@pytest.mark.kill
async def test_tail_outlives_the_server(own_server: OwnServer, own_bus: Bus) -> None:
    stream = EventStream(own_bus)
    await stream.adopt("one")
    await stream.publish(events(1, 2))
    tail = stream.tail("0", idle_s=0.2)
    assert _ids(await take(tail, 2)) == ["1-0", "2-0"]
    own_server.kill()
    assert await anext(tail) is None
    own_server.start()
    await stream.adopt("one")
    await stream.publish(events(3, 4))
    async with asyncio.timeout(20):
        assert _ids(await take(tail, 2)) == ["3-0", "4-0"]


async def test_a_full_server_refuses_and_leaves_no_hole(own_server: OwnServer, own_bus: Bus) -> None:
    stream = EventStream(own_bus)
    await stream.adopt("one")
    await stream.publish(events(1, 1))
    own_server.ask(lambda client: client.config_set("maxmemory", "1mb"))
    own_server.ask(lambda client: client.config_set("maxmemory-policy", "noeviction"))

    async def fill() -> None:
        for first in range(2, 100_000, 100):
            await stream.publish(events(first, first + 99))

    with pytest.raises(BusUnavailable, match=r"takes nothing now: .*maxmemory"):
        await fill()
    own_server.ask(lambda client: client.config_set("maxmemory", "0"))
    ends = await stream.ends()
    assert ends is not None
    last = int(ends[1].split("-")[0])
    assert await own_bus.client.xlen(stream.key) == last


@pytest.mark.parametrize("url", ["", "http://x", "redis://", "localhost:6379", "unix://"])
def test_urls_that_are_not_understood(url: str) -> None:
    with pytest.raises(InvalidParameter, match=r"bus\.url"):
        Bus(url)

"""The stream of domain events: published with ids of our own, followed from any id on.

An entry's id is its event's id, so publishing twice is harmless (the server refuses an id that is not higher), a
client can come back with the last id it saw, and a hole in the numbers shows that something was trimmed or lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from backendai_ray.core.errors import BusUnavailable
from backendai_ray.records import DecodeError

from .backoff import Backoff
from .connection import Bus
from .events import DomainEvent, parse_event_id

log = structlog.get_logger()

EVENTS = "events"
"""The stream of changes of status."""

PAGE = 200
_BEGINNING = (0, 0)

# One step for the server: it refuses when it has lost what it knew (a restart without our noticing), and never leaves
# a hole. KEYS: stream, marker. ARGV: the store's identity, the length to keep, then id and three fields of each event.
_APPEND = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return redis.error_reply('NOTADOPTED the stream is not of this store')
end
local added = 0
for i = 3, #ARGV, 7 do
    local reply = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], unpack(ARGV, i, i + 6))
    if type(reply) ~= 'table' or not reply.err then
        added = added + 1
    elseif not string.find(reply.err, 'equal or smaller', 1, true) then
        return redis.error_reply(reply.err)
    end
end
return added
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the stream."""

    id: str
    event: DomainEvent


@dataclass(frozen=True, slots=True)
class Gap:
    """Events between two ids are not in the stream any more: read the present state instead."""

    after: str
    resumed_at: str


class EventStream:
    """Publishes events in order and follows them."""

    def __init__(self, bus: Bus, *, name: str = EVENTS, max_length: int = 100_000) -> None:
        self.bus = bus
        self.key = bus.key(name)
        self._max_length = max_length
        self._marker = bus.key(f"{name}:store")
        self._identity = ""
        self._append = bus.client.register_script(_APPEND)

    async def publish(self, events: Sequence[DomainEvent]) -> int:
        """Append events of the adopted store; those that are there already are left out. Returns how many were new.

        Raises:
            BusUnavailable: not all were appended, but no later one without all earlier ones: adopt and publish again,
                beginning with the first one that the bus may have lost.
        """
        if not events:
            return 0
        words = [self._identity, str(self._max_length)]
        for event in events:
            words += [event.id, *(word for field in event.to_fields().items() for word in field)]
        try:
            added = await self.bus.ask(self._append(keys=[self.key, self._marker], args=words))
        except ResponseError as exc:
            raise BusUnavailable(f"{self.bus.where} does not take events: {exc}") from exc
        return int(added)

    async def adopt(self, identity: str) -> None:
        """Make the stream that of a store: numbers of another store mean other events, so its stream is dropped."""
        self._identity = identity
        known = await self.bus.ask(self.bus.client.get(self._marker))
        if known == identity:
            return
        if known is not None:
            log.warning("bus.stream_of_another_store_dropped", key=self.key)
            await self.bus.ask(self.bus.client.delete(self.key))
        await self.bus.ask(self.bus.client.set(self._marker, identity))

    async def ends(self) -> tuple[str, str] | None:
        """Return the ids of the oldest and the newest entry; ``None`` when there is none."""
        oldest = await self.bus.ask(self.bus.client.xrange(self.key, count=1))
        newest = await self.bus.ask(self.bus.client.xrevrange(self.key, count=1))
        return (str(oldest[0][0]), str(newest[0][0])) if oldest and newest else None

    async def read(self, after: str, *, limit: int = PAGE, wait_s: float = 0.0) -> list[tuple[str, Mapping[str, str]]]:
        """Return ids and fields of what is behind an id, waiting for the first one if there is none.

        Raises:
            BusUnavailable: the bus is away.
        """
        block_ms = max(1, int(wait_s * 1000)) if wait_s > 0 else None
        call = self.bus.client.xread({self.key: after}, count=limit, block=block_ms)
        return raw_entries(await self.bus.ask(call, wait_s=wait_s))

    async def tail(self, after: str | None = None, *, idle_s: float = 15.0) -> AsyncIterator[Entry | Gap | None]:
        """Follow the stream for ever; the bus may go away and come back meanwhile.

        Args:
            after: The last id that was seen; ``None``: only what is published from now on.
            idle_s: ``None`` is yielded after so many seconds without an event, so that a caller can look around.
        """
        position = None if after is None else parse_event_id(after) or _BEGINNING
        patience = Backoff()
        is_checked = False
        while True:
            try:
                if position is None:
                    ends = await self.ends()
                    position = parse_event_id(ends[1]) or _BEGINNING if ends else _BEGINNING
                    is_checked = True
                elif not is_checked:
                    gap = await self._gap_behind(position)
                    is_checked = True
                    if gap is not None:
                        position = _just_before(gap.resumed_at)
                        yield gap
                entries = await self.read(_text(position), wait_s=idle_s)
            except BusUnavailable:
                is_checked = False  # what comes back may be an empty server
                await patience.wait()
                yield None
                continue
            patience.reset()
            if not entries:
                yield None
            for entry_id, fields in entries:
                here = parse_event_id(entry_id) or position
                if position != _BEGINNING and here[0] > position[0] + 1:
                    yield Gap(_text(position), entry_id)
                position = here
                event = to_event(entry_id, fields)
                if event is not None:
                    yield Entry(entry_id, event)

    async def _gap_behind(self, position: tuple[int, int]) -> Gap | None:
        ends = await self.ends()
        if ends is None:
            return None
        oldest, newest = (parse_event_id(end) or _BEGINNING for end in ends)
        if oldest[0] > position[0] + 1 or newest < position:
            return Gap(_text(position), ends[0])
        return None


def raw_entries(answer: Any) -> list[tuple[str, Mapping[str, str]]]:
    """Return ``(id, fields)`` of everything that XREAD or XREADGROUP answered, whichever protocol is spoken."""
    found: list[tuple[str, Mapping[str, str]]] = []
    for _key, items in answer.items() if isinstance(answer, dict) else answer or ():
        is_wrapped = bool(items) and bool(items[0]) and isinstance(items[0][0], list | tuple)
        found.extend((entry_id, fields or {}) for entry_id, fields in (items[0] if is_wrapped else items))
    return found


def to_event(entry_id: str, fields: Mapping[str, str]) -> DomainEvent | None:
    """Return an entry's event; ``None`` when it is none of ours."""
    try:
        return DomainEvent.from_fields(fields)
    except DecodeError as exc:
        log.warning("bus.foreign_entry", id=entry_id, error=str(exc)[:200])
        return None


def _text(position: tuple[int, int]) -> str:
    return f"{position[0]}-{position[1]}"


def _just_before(entry_id: str) -> tuple[int, int]:
    number, part = parse_event_id(entry_id) or _BEGINNING
    return (number, part - 1) if part else (max(0, number - 1), 2**31)

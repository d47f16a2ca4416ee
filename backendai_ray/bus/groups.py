"""Consumer groups: every event is handled at least once by one member, also when a member dies with it in hand.

An event that was handed out and not acknowledged for a while is claimed by another member. One that was handed out
too often (it makes its handler fail each time) goes to the dead-letter stream with a note, so that it stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import ResponseError

from backendai_ray.core.errors import BusUnavailable

from .backoff import Backoff
from .streams import PAGE, Entry, EventStream, raw_entries, to_event

log = structlog.get_logger()

DEAD_LETTERS_KEPT = 10_000

Handler = Callable[[Entry], Awaitable[None]]


class ConsumerGroup:
    """One member of a group on an event stream.

    Args:
        stream: What to consume.
        group: Shared by all members; each event goes to one of them.
        consumer: Names this member; unique among those alive.
        claim_after_s: How long an event may stay with a member that says nothing.
        max_deliveries: How often an event is handed out before it is put aside.
    """

    def __init__(
        self,
        stream: EventStream,
        group: str,
        consumer: str,
        *,
        claim_after_s: float = 30.0,
        max_deliveries: int = 5,
    ) -> None:
        self._stream = stream
        self._bus = stream.bus
        self._group = group
        self._consumer = consumer
        self._claim_after_ms = max(1, int(claim_after_s * 1000))
        self._max_deliveries = max_deliveries
        self.dead_letters = self._bus.key(f"dead:{group}")

    async def create(self, *, start: str = "0") -> None:
        """Make the group if it is not there; ``start="$"``: it begins with what is published from now on."""
        try:
            await self._bus.ask(self._bus.client.xgroup_create(self._stream.key, self._group, id=start, mkstream=True))
        except ResponseError as exc:
            if "BUSYGROUP" not in str(exc):
                raise

    async def read(self, *, limit: int = PAGE, wait_s: float = 0.0) -> list[Entry]:
        """Return events to handle: first what others left behind, then new ones. Acknowledge each when done.

        Raises:
            BusUnavailable: the bus is away.
        """
        try:
            left_behind = await self._claim(limit)
            if left_behind:
                return left_behind
            return await self._new(limit, wait_s)
        except ResponseError as exc:
            if "NOGROUP" not in str(exc) and "no such key" not in str(exc):
                raise
        await self.create()  # the server lost everything; so begin with what it has now
        return await self._new(limit, wait_s)

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Say that these were handled."""
        if entries:
            ids = [entry.id for entry in entries]
            await self._bus.ask(self._bus.client.xack(self._stream.key, self._group, *ids))

    async def run(self, handle: Handler, *, wait_s: float = 5.0) -> None:
        """Consume for ever: an event whose handler fails is handed out again later, and the others go on."""
        patience = Backoff()
        while True:
            try:
                entries = await self.read(wait_s=min(wait_s, self._claim_after_ms / 1000))
                for entry in entries:
                    await self._handle(handle, entry)
                patience.reset()
            except BusUnavailable as exc:
                log.warning("bus.consumer_waits", group=self._group, error=exc.message)
                await patience.wait()

    async def _handle(self, handle: Handler, entry: Entry) -> None:
        try:
            await handle(entry)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("bus.handler_failed", group=self._group, id=entry.id, name=entry.event.name)
            return
        await self.acknowledge([entry])

    async def _new(self, limit: int, wait_s: float) -> list[Entry]:
        block_ms = max(1, int(wait_s * 1000)) if wait_s > 0 else None
        answer = await self._bus.ask(
            self._bus.client.xreadgroup(
                self._group, self._consumer, {self._stream.key: ">"}, count=limit, block=block_ms
            ),
            wait_s=wait_s,
        )
        return await self._understood(raw_entries(answer))

    async def _claim(self, limit: int) -> list[Entry]:
        answer: Any = await self._bus.ask(
            self._bus.client.xautoclaim(
                self._stream.key, self._group, self._consumer, min_idle_time=self._claim_after_ms, count=limit
            )
        )
        claimed = [(str(entry_id), fields) for entry_id, fields in answer[1] if fields]
        if not claimed:
            return []
        deliveries = await self._deliveries(claimed[0][0], claimed[-1][0], limit)
        usable = []
        for entry_id, fields in claimed:
            times = deliveries.get(entry_id, 1)
            if times > self._max_deliveries:
                await self._put_aside(entry_id, fields, f"handed out {times - 1} times and never acknowledged")
            else:
                usable.append((entry_id, fields))
        return await self._understood(usable)

    async def _deliveries(self, first: str, last: str, limit: int) -> dict[str, int]:
        pending: Any = await self._bus.ask(
            self._bus.client.xpending_range(
                self._stream.key, self._group, min=first, max=last, count=limit, consumername=self._consumer
            )
        )
        return {str(line["message_id"]): int(line["times_delivered"]) for line in pending}

    async def _understood(self, raw: Sequence[tuple[str, Mapping[str, str]]]) -> list[Entry]:
        entries = []
        for entry_id, fields in raw:
            event = to_event(entry_id, fields)
            if event is None:
                await self._put_aside(entry_id, fields, "not an event of ours")
            else:
                entries.append(Entry(entry_id, event))
        return entries

    async def _put_aside(self, entry_id: str, fields: Mapping[str, str], why: str) -> None:
        log.warning("bus.dead_letter", group=self._group, id=entry_id, why=why)
        letter: dict[Any, Any] = {**fields, "dead_id": entry_id, "dead_why": why}
        pipeline = self._bus.client.pipeline(transaction=True)
        pipeline.xadd(self.dead_letters, letter, maxlen=DEAD_LETTERS_KEPT, approximate=True)
        pipeline.xack(self._stream.key, self._group, entry_id)
        await self._bus.ask(pipeline.execute())

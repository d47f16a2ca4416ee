"""From the store to the bus: ships committed events in order, and waits patiently while the bus is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from backendai_ray.core.errors import BackendError

from .backoff import Backoff
from .events import events_of
from .streams import EventStream

if TYPE_CHECKING:
    from backendai_ray.store import OutboxEvent

log = structlog.get_logger()

PAGE = 500

TRIM_AFTER_S = 1.0
"""A trim is a commit: it waits for a quiet moment, or for :data:`TRIM_AFTER_EVENTS`."""

TRIM_AFTER_EVENTS = 2000


class OutboxSource(Protocol):
    """What the relay needs of the store."""

    @property
    def identity(self) -> str:
        """Names the store among all stores that ever were."""
        ...

    async def outbox(self, after: int = 0, limit: int = PAGE) -> Sequence[OutboxEvent]: ...

    async def trim_outbox(self, upto: int) -> None: ...


class OutboxRelay:
    """Ships the outbox to the event stream.

    At least once and in order; the stream itself leaves out what it has already, so in fact once. Nothing here ever
    raises into the Manager: while bus or store is away it tries again, ever more slowly (at most every 5 s).
    """

    def __init__(self, source: OutboxSource, stream: EventStream, *, backoff: Backoff | None = None) -> None:
        self._source = source
        self._stream = stream
        self._backoff = backoff or Backoff()
        self._woken = asyncio.Event()
        self._is_adopted = False
        self._shipped = 0
        self._trimmed = 0
        self.is_behind = False
        """Whether the last try failed, so that events wait in the store."""

    @property
    def shipped(self) -> int:
        """The number of the last event that the bus has taken."""
        return self._shipped

    def wake(self) -> None:
        """Something was committed. Cheap; any number of calls mean one look."""
        self._woken.set()

    async def run(self) -> None:
        """Ship until cancelled."""
        self._woken.set()
        while True:
            try:
                await self._wait_for_work()
                while await self.step():
                    pass
                self._succeeded()
            except BackendError as exc:
                await self._failed(exc.message)
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                log.exception("bus.relay_bug")
                await self._failed(repr(exc))

    async def step(self) -> int:
        """Ship one page; returns how many changes it held.

        Raises:
            BusUnavailable: the bus is away; nothing is lost.
            StoreUnavailable: the store is away.
        """
        if not self._is_adopted:
            await self._stream.adopt(self._source.identity)
            self._is_adopted = True
        page = await self._source.outbox(self._shipped, PAGE)
        if page:
            await self._stream.publish([event for committed in page for event in events_of(committed)])
            self._shipped = page[-1].number
        if self._shipped - self._trimmed >= TRIM_AFTER_EVENTS:
            await self.trim()
        return len(page)

    async def trim(self) -> None:
        """Tell the store what need not be shipped again."""
        if self._shipped > self._trimmed:
            await self._source.trim_outbox(self._shipped)
            self._trimmed = self._shipped

    async def _wait_for_work(self) -> None:
        if self._shipped > self._trimmed:
            try:
                async with asyncio.timeout(TRIM_AFTER_S):
                    await self._woken.wait()
            except TimeoutError:
                await self.trim()
        await self._woken.wait()
        self._woken.clear()

    def _succeeded(self) -> None:
        if self.is_behind:
            log.info("bus.relay_caught_up", shipped=self._shipped)
        self.is_behind = False
        self._backoff.reset()

    async def _failed(self, why: str) -> None:
        if not self.is_behind:
            log.warning("bus.relay_waits", shipped=self._shipped, error=why)
        self.is_behind = True
        # What comes back may be another server, or the same without its memory: begin with what is not trimmed.
        self._is_adopted = False
        self._shipped = self._trimmed
        self._woken.set()  # what could not be shipped is still there
        await self._backoff.wait()

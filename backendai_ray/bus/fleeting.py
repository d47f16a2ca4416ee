"""Things that only matter now, such as the progress of an image pull: told to whoever listens, else forgotten.

Nobody ever waits for them: telling puts a message in a short line and returns, and what does not fit is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import structlog

from backendai_ray.core.errors import BusUnavailable
from backendai_ray.records import DecodeError, decode, encode

from .backoff import Backoff
from .connection import Bus

log = structlog.get_logger()

LINE_LENGTH = 1000
PULL_PROGRESS = "pull-progress"
"""The channel of image pulls: ``{"session_id", "kernel_id", "agent_id", "image", "current", "total", "message"}``."""


USAGE = "usage"
"""The channel of measurements: a ``NodeUsage`` of :mod:`backendai_ray.core.measurements` as JSON, from each node."""


class Fleeting:
    """Tells and hears fleeting messages; both are lossy."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._line: deque[tuple[str, bytes]] = deque(maxlen=LINE_LENGTH)
        self._sender: asyncio.Task[None] | None = None

    def tell(self, channel: str, message: Mapping[str, Any]) -> None:
        """Send a message when there is time; the oldest waiting one is dropped when the line is full."""
        self._line.append((self._bus.key(channel), encode(message)))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def hear(self, channel: str, *, idle_s: float = 15.0) -> AsyncIterator[Mapping[str, Any] | None]:
        """Yield messages that are told from now on, for ever; ``None`` after ``idle_s`` without one."""
        patience = Backoff()
        while True:
            subscription = self._bus.client.pubsub(ignore_subscribe_messages=True)
            try:
                await self._bus.ask(subscription.subscribe(self._bus.key(channel)))
                while True:
                    # The connection's own timeout does not fit here: silence is normal.
                    message = await self._bus.ask(subscription.get_message(timeout=idle_s), wait_s=idle_s)
                    patience.reset()
                    if message is None:
                        yield None
                    elif message["type"] == "message" and (told := _understood(message["data"])) is not None:
                        yield told
            except BusUnavailable:
                yield None
                await patience.wait()
            finally:
                await _close(self._bus, subscription)

    async def close(self) -> None:
        """Stop sending; what is in line is dropped."""
        self._line.clear()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self) -> None:
        try:
            while self._line:
                channel, payload = self._line.popleft()
                await self._bus.ask(self._bus.client.publish(channel, payload))
        except BusUnavailable as exc:
            dropped = len(self._line) + 1
            self._line.clear()
            log.debug("bus.fleeting_dropped", messages=dropped, error=exc.message)


def _understood(payload: Any) -> Mapping[str, Any] | None:
    try:
        return decode(payload, dict[str, Any])
    except DecodeError:
        return None


async def _close(bus: Bus, subscription: Any) -> None:
    try:
        await bus.ask(subscription.aclose())
    except BusUnavailable:
        pass  # then it is closed already

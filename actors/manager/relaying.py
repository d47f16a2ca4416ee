"""The way of committed status changes to the event bus."""

from __future__ import annotations

from backendai_ray.bus import Bus, EventStream, OutboxRelay
from backendai_ray.config import BusSettings
from backendai_ray.store import Store

from .ports import ManagerStore


class BusRelay:
    """An outbox relay with a connection of its own."""

    def __init__(self, store: Store, settings: BusSettings) -> None:
        self._bus = Bus(settings.url.get_secret_value())
        self._relay = OutboxRelay(store, EventStream(self._bus, max_length=settings.stream_length))

    def wake(self) -> None:
        """Something was committed: look soon."""
        self._relay.wake()

    async def run(self) -> None:
        """Ship until cancelled."""
        await self._relay.run()

    async def close(self) -> None:
        """Close the connection."""
        await self._bus.close()


def open_relay(store: ManagerStore, settings: BusSettings) -> BusRelay | None:
    """Return the relay; none when no bus is configured, or the store keeps no outbox."""
    if not settings.url.get_secret_value() or not isinstance(store, Store):
        return None
    return BusRelay(store, settings)

"""Measurements on their way to the event bus: one message a beat, dropped when nobody can take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backendai_ray.config import BusSettings
from backendai_ray.core.measurements import NodeUsage
from backendai_ray.records import to_plain

if TYPE_CHECKING:
    from backendai_ray.bus import Bus, Fleeting


class UsageTeller:
    """Tells the bus; connects with the first message, and to nothing where no bus is configured."""

    def __init__(self, settings: BusSettings) -> None:
        self._url = settings.url.get_secret_value()
        self._bus: Bus | None = None
        self._fleeting: Fleeting | None = None

    def tell(self, usage: NodeUsage) -> None:
        """Send a measurement when there is time; returns at once."""
        if not self._url:
            return
        from backendai_ray.bus import USAGE, Bus, Fleeting  # late: agents without a bus need not carry its client

        if self._fleeting is None:
            self._bus = Bus(self._url)
            self._fleeting = Fleeting(self._bus)
        self._fleeting.tell(USAGE, to_plain(usage))

    async def close(self) -> None:
        """Close the connection; what was not sent is dropped."""
        if self._fleeting is not None and self._bus is not None:
            await self._fleeting.close()
            await self._bus.close()

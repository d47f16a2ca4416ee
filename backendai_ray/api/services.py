"""What the front door talks to; it has no state of its own that matters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from actors.contracts import AgentContract, ManagerContract, SokovanContract
from backendai_ray.bus import Entry, Gap
from backendai_ray.core.ids import AgentId


class EventSource(Protocol):
    """The stream of domain events, followed from any point on (:class:`backendai_ray.bus.EventStream`)."""

    async def ends(self) -> tuple[str, str] | None:
        """Return the ids of the oldest and the newest entry; raises ``BusUnavailable`` while the bus is away."""
        ...

    def tail(self, after: str | None = None, *, idle_s: float = 15.0) -> AsyncIterator[Entry | Gap | None]:
        """Follow the stream for ever, also while the bus is away; ``None`` says that nothing came for a while."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The peers of a front door."""

    manager: ManagerContract
    agent: Callable[[AgentId], AgentContract]
    sokovan: SokovanContract
    events: EventSource

"""What the front door talks to; it has no state of its own that matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.contracts import AgentContract, ManagerContract, SokovanContract
from backendai_ray.core.ids import AgentId
from backendai_ray.core.lifecycle import StatusChange


@dataclass(frozen=True, slots=True)
class StreamedChange:
    """A status change as it stands on the event stream."""

    id: str
    """Orders the stream; a reader goes on after the last one it has."""
    change: StatusChange


class ChangeStream(Protocol):
    """The stream of status changes, read from any point on.

    Both raise ``BusUnavailable`` while the bus is away; what happened meanwhile is there once it is back.
    """

    async def newest_id(self) -> str:
        """Return the id after which everything that happens from now on comes."""
        ...

    async def read(self, after_id: str, wait_s: float) -> Sequence[StreamedChange]:
        """Return what comes after ``after_id``, waiting up to ``wait_s`` for the first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The peers of a front door."""

    manager: ManagerContract
    agent: Callable[[AgentId], AgentContract]
    sokovan: SokovanContract
    changes: ChangeStream

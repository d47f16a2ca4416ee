"""What the Manager needs from outside, and nothing more: tests put fakes here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from actors.contracts import AgentContract
from backendai_ray.core.ids import AccessKey, AgentId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import Session
from backendai_ray.store import (
    AgentRecord,
    Batch,
    GroupRecord,
    IdempotencyRecord,
    KeypairRecord,
    QuotaRecord,
    UsageRecord,
)

Clock = Callable[[], float]
"""Unix seconds."""

NewId = Callable[[], str]
"""A new UUID in canonical form."""

ConnectAgent = Callable[[AgentId], AgentContract]

ResolveReport = Callable[[object], Awaitable[NodeReport]]
"""Turns what ``node_report`` carries into the report."""


class ManagerStore(Protocol):
    """The part of :class:`backendai_ray.store.Store` that the Manager uses."""

    async def commit(self, batch: Batch) -> None: ...
    async def sweep_idempotency(self, now: float) -> int: ...
    async def sweep_scheduling(self, before: float) -> int: ...
    async def scheduling_history(self, session_id: str) -> list[SchedulingEntry]: ...
    async def last_scheduling(self, session_ids: Sequence[str]) -> dict[SessionId, SchedulingEntry]: ...
    async def live_sessions(self) -> list[Session]: ...
    async def recently_ended(self, limit: int) -> list[Session]: ...
    async def session(self, session_id: str) -> Session | None: ...
    async def find(self, access_key: AccessKey | None, name_or_id: str) -> Session | None: ...
    async def page(
        self, access_key: AccessKey | None, statuses: Sequence[str] = (), limit: int = 100, offset: int = 0
    ) -> tuple[list[Session], int]: ...
    async def history(self, session_id: str) -> list[StatusChange]: ...
    async def kernel_log(self, kernel_id: str) -> bytes | None: ...
    async def idempotent(self, access_key: AccessKey, key: str) -> IdempotencyRecord | None: ...
    async def keypair(self, access_key: str) -> KeypairRecord | None: ...
    async def keypairs(self) -> list[KeypairRecord]: ...
    async def agents(self) -> list[AgentRecord]: ...
    async def groups(self) -> list[GroupRecord]: ...
    async def quotas(self) -> list[QuotaRecord]: ...
    async def usage(self, since: float) -> list[UsageRecord]: ...
    async def sweep_usage(self, before: float) -> int: ...
    async def dependents(self, session_id: str) -> list[SessionId]: ...
    async def close(self) -> None: ...


OpenStore = Callable[[], Awaitable[ManagerStore]]


class Relay(Protocol):
    """Ships committed status changes to the event bus; never raises into the Manager."""

    def wake(self) -> None:
        """Something was committed: look soon."""
        ...

    async def run(self) -> None:
        """Ship until cancelled."""
        ...

    async def close(self) -> None:
        """Let go of the bus."""
        ...


OpenRelay = Callable[[ManagerStore], Relay | None]

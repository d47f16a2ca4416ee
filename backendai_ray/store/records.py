"""What goes into the store and comes out of it, beside sessions themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from backendai_ray.core.ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.quotas import Limits, Scope
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import Session
from backendai_ray.core.usage import Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLog:
    """What an ended kernel's container printed, as far as it was kept."""

    kernel_id: KernelId
    session_id: SessionId
    log: bytes
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """A request that was carried out under a key, so that its repetition gets the same answer."""

    access_key: AccessKey
    key: str
    fingerprint: str
    """Of the request; the same key with another fingerprint is a mistake of the caller."""
    session_id: SessionId | None = None
    answer: str = ""
    """Whatever the caller needs to answer again; usually empty or JSON."""
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypairRecord:
    """Who signs requests."""

    access_key: AccessKey
    secret_key: str = field(repr=False)
    user: str = ""
    domain: str = "default"
    project: str = "default"
    is_active: bool = True
    is_admin: bool = False
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """A node that was ever there; what it has and holds now is said by its reports, not here."""

    agent_id: AgentId
    resource_group: ResourceGroupName
    first_contact: float
    lost_at: float | None = None
    incarnation: str = ""
    """The last one heard of."""
    architecture: str = ""
    backend: str = ""
    capacity: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """A set of nodes with one scheduling policy."""

    name: ResourceGroupName
    policy: str
    selection: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRecord:
    """What a scope may have; without limits there is no quota."""

    scope: Scope
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What an account used in one hour in one resource group; it is added to what is stored already."""

    resource_group: ResourceGroupName
    charge: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEvent:
    """A committed change of status that the event bus has not confirmed yet."""

    number: int
    """Rises by one with every change that was ever committed; never used twice."""
    change: StatusChange
    access_key: AccessKey
    session_name: str
    domain: str
    project: str
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What must be committed together: all of it or nothing."""

    sessions: tuple[Session, ...] = ()
    """New ones, and newer versions of known ones."""
    changes: tuple[StatusChange, ...] = ()
    """Lines of the history; each also becomes an event of the outbox. Their sessions are in this batch or stored."""
    kernel_logs: tuple[KernelLog, ...] = ()
    idempotency: tuple[IdempotencyRecord, ...] = ()
    keypairs: tuple[KeypairRecord, ...] = ()
    agents: tuple[AgentRecord, ...] = ()
    groups: tuple[GroupRecord, ...] = ()
    quotas: tuple[QuotaRecord, ...] = ()
    usage: tuple[UsageRecord, ...] = ()
    scheduling: tuple[SchedulingEntry, ...] = ()
    """Their sessions are stored."""

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def __add__(self, other: Batch) -> Batch:
        """Return both as one; a session that is in both keeps its place in the order, first this, then the other."""
        return Batch(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)})

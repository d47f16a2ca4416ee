"""Quotas: what the sessions of a keypair, a user, a project or a domain may hold together, and what they hold.

A session is bound by every scope that it is in. One that would exceed a quota waits; it is judged within a scheduling
pass, what the pass has placed already included, and once more when the plan is carried out. Quotas hold over all
resource groups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .ids import AccessKey, KernelId, SessionId
from .slots import ResourceSlots, format_amount


class ScopeKind(StrEnum):
    """Whose sessions are counted together; from the narrowest to the widest."""

    KEYPAIR = "keypair"
    USER = "user"
    PROJECT = "project"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """One keypair, user, project or domain."""

    kind: ScopeKind
    name: str
    """An access key, a user's name, ``DOMAIN/PROJECT``, or a domain's name."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Owned(Protocol):
    """What belongs to somebody: a session's specification, a session that waits, a kernel that runs."""

    @property
    def access_key(self) -> AccessKey: ...
    @property
    def user(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def domain(self) -> str: ...


def scopes_of(owned: Owned) -> tuple[Scope, ...]:
    """Return every scope that something belongs to; who has no user's name is in no user's scope."""
    scopes = (
        Scope(ScopeKind.KEYPAIR, owned.access_key),
        Scope(ScopeKind.PROJECT, f"{owned.domain}/{owned.project}"),
        Scope(ScopeKind.DOMAIN, owned.domain),
    )
    return (*scopes[:1], Scope(ScopeKind.USER, owned.user), *scopes[1:]) if owned.user else scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a scope may have; what is not named is not limited."""

    slots: Mapping[str, int] = field(default_factory=dict)
    """Units by slot that its sessions may hold together; 0 is a limit too."""
    sessions: int | None = None
    """How many may hold devices at the same time."""
    pending: int | None = None
    """How many may wait; one more is refused when it is submitted."""

    def __bool__(self) -> bool:
        return bool(self.slots) or self.sessions is not None or self.pending is not None


@dataclass(frozen=True, slots=True)
class Use:
    """What a scope holds."""

    slots: Mapping[str, int] = field(default_factory=dict)
    sessions: int = 0

    def __add__(self, other: Use) -> Use:
        names = {*self.slots, *other.slots}
        slots = {name: self.slots.get(name, 0) + other.slots.get(name, 0) for name in names}
        return Use(slots, self.sessions + other.sessions)


@dataclass(frozen=True, slots=True)
class Quota:
    """A scope's limits, with what it holds in other resource groups than the one that is decided on."""

    scope: Scope
    limits: Limits
    elsewhere: Use = Use()


@dataclass(frozen=True, slots=True)
class Breach:
    """The quota that keeps a session waiting."""

    scope: Scope
    what: str
    """A slot, or ``sessions``."""
    limit: int
    used: int
    asked: int

    def __str__(self) -> str:
        limit, used, asked = (self._amount(units) for units in (self.limit, self.used, self.asked))
        if self.what == SESSIONS:
            return f"the quota of {self.scope} allows {limit} sessions at a time, and {used} hold resources"
        if self.asked > self.limit:
            return f"asks for {self.what} {asked}, and the quota of {self.scope} allows {limit} in all"
        return f"asks for {self.what} {asked}; the quota of {self.scope} allows {limit}, and {used} are in use"

    def _amount(self, units: int) -> str:
        return str(units) if self.what == SESSIONS else format_amount(self.what, units)


SESSIONS = "sessions"


def breach_of(
    owned: Owned, asked: ResourceSlots, limits: Mapping[Scope, Limits], used: Callable[[Scope], Use]
) -> Breach | None:
    """Return the first quota, from the narrowest scope on, that a session would exceed; ``None`` when it may start.

    Args:
        owned: Whose the session is.
        asked: What its kernels ask for together.
        limits: The limits by scope.
        used: Returns what a scope holds.
    """
    for scope in scopes_of(owned):
        limit = limits.get(scope)
        if limit is None:
            continue
        use = used(scope)
        if limit.sessions is not None and use.sessions >= limit.sessions:
            return Breach(scope, SESSIONS, limit.sessions, use.sessions, 1)
        for slot in sorted(limit.slots):
            has, wants = use.slots.get(slot, 0), asked.amount(slot)
            if wants and has + wants > limit.slots[slot]:
                return Breach(scope, slot, limit.slots[slot], has, wants)
    return None


@dataclass(frozen=True, slots=True)
class _Hold:
    session_id: SessionId
    scopes: tuple[Scope, ...]
    slots: ResourceSlots


class Tally:
    """Counts what kernels hold, by scope. Saying a thing twice counts once."""

    def __init__(self, only: Collection[Scope] | None = None) -> None:
        """Count for these scopes; ``None``: for all."""
        self._only = only
        self._holds: dict[KernelId, _Hold] = {}
        self._slots: dict[Scope, dict[str, int]] = {}
        self._sessions: dict[Scope, dict[SessionId, int]] = {}

    def hold(self, kernel_id: KernelId, session_id: SessionId, owned: Owned, slots: ResourceSlots) -> None:
        """Count a kernel; one that is counted already is not counted again."""
        if kernel_id in self._holds:
            return
        scopes = scopes_of(owned)
        if self._only is not None:
            scopes = tuple(scope for scope in scopes if scope in self._only)
        self._holds[kernel_id] = _Hold(session_id, scopes, slots)
        for scope in scopes:
            has, sessions = self._slots.setdefault(scope, {}), self._sessions.setdefault(scope, {})
            for slot, units in slots.items():
                has[slot] = has.get(slot, 0) + units
            sessions[session_id] = sessions.get(session_id, 0) + 1

    def free(self, kernel_id: KernelId) -> tuple[Scope, ...]:
        """Count a kernel no more; returns the scopes that hold less now."""
        hold = self._holds.pop(kernel_id, None)
        if hold is None:
            return ()
        for scope in hold.scopes:
            has, sessions = self._slots[scope], self._sessions[scope]
            for slot, units in hold.slots.items():
                has[slot] -= units
            sessions[hold.session_id] -= 1
            if not sessions[hold.session_id]:
                del sessions[hold.session_id]
            if not sessions:
                del self._slots[scope], self._sessions[scope]
        return hold.scopes

    def used(self, scope: Scope) -> Use:
        """Return what a scope holds; a copy."""
        slots = {slot: units for slot, units in self._slots.get(scope, {}).items() if units}
        return Use(slots, len(self._sessions.get(scope, ())))

    def kernels(self) -> Iterator[KernelId]:
        """Return the kernels that are counted."""
        return iter(self._holds)

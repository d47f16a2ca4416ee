"""Domain events: what watchers, web hooks and the audit read, made from committed changes of status.

An event has the original's name, a version, and an id ``NUMBER-PART``: the number of the committed change (it rises by
one, without gaps, for the whole life of a store) and a part, because one change may mean two events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Reason, Status
from backendai_ray.records import decode, encode

if TYPE_CHECKING:
    from backendai_ray.store import OutboxEvent

EVENT_VERSION: Final = 1
"""Of the JSON document; fields are only ever added within a version."""

VERBS: Final[Mapping[Status, str]] = {
    Status.PENDING: "enqueued",
    Status.SCHEDULED: "scheduled",
    Status.PREPARING: "preparing",
    Status.PULLING: "pulling",
    Status.CREATING: "creating",
    Status.RUNNING: "started",
    Status.RESTARTING: "restarting",
    Status.TERMINATING: "terminating",
    Status.TERMINATED: "terminated",
    Status.CANCELLED: "cancelled",
    Status.ERROR: "terminated",
}
"""The event of every status, without ``session_`` or ``kernel_``."""

SUCCESS: Final = "session_success"
FAILURE: Final = "session_failure"

_OUTCOMES: Final[Mapping[Reason, str]] = {
    Reason.TASK_FINISHED: SUCCESS,
    Reason.TASK_FAILED: FAILURE,
    Reason.TASK_TIMEOUT: FAILURE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvent:
    """One event, as it travels; times are Unix seconds."""

    name: str
    number: int
    part: int
    session_id: SessionId
    session_name: str
    kernel_id: KernelId | None
    """``None``: the event is the session's."""
    access_key: AccessKey
    domain: str
    project: str
    user: str
    before: Status
    status: Status
    reason: Reason
    message: str
    at: float
    cause: str
    version: int = EVENT_VERSION

    @property
    def id(self) -> str:
        """The id in the stream, and what a client sends back as ``Last-Event-ID``."""
        return f"{self.number}-{self.part}"

    def to_fields(self) -> dict[str, str]:
        """Return the fields of a stream entry."""
        return {"name": self.name, "version": str(self.version), "data": encode(self).decode()}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> DomainEvent:
        """Read a stream entry.

        Raises:
            DecodeError: it is not one of ours.
        """
        return decode(fields.get("data", ""), cls)


def names_of(change: StatusChange) -> tuple[str, ...]:
    """Return the names of the events that a change means, in order; at least one."""
    if change.kernel_id is not None:
        return (f"kernel_{VERBS[change.after]}",)
    own = f"session_{VERBS[change.after]}"
    if change.after is Status.ERROR:
        return FAILURE, own
    if change.after is Status.TERMINATING and change.reason in _OUTCOMES:
        return _OUTCOMES[change.reason], own
    return (own,)


def events_of(committed: OutboxEvent) -> tuple[DomainEvent, ...]:
    """Return the events of a committed change."""
    change = committed.change
    return tuple(
        DomainEvent(
            name=name,
            number=committed.number,
            part=part,
            session_id=change.session_id,
            session_name=committed.session_name,
            kernel_id=change.kernel_id,
            access_key=committed.access_key,
            domain=committed.domain,
            project=committed.project,
            user=committed.user,
            before=change.before,
            status=change.after,
            reason=change.reason,
            message=change.message,
            at=change.at,
            cause=change.cause,
        )
        for part, name in enumerate(names_of(change))
    )


def parse_event_id(text: str) -> tuple[int, int] | None:
    """Return ``(number, part)`` of an event id, or ``None`` when it is none (a client may send anything)."""
    number, _, part = text.strip().partition("-")
    if not (number.isascii() and number.isdigit() and len(number) <= 19):
        return None
    if part and not (part.isascii() and part.isdigit() and len(part) <= 9):
        return None
    return int(number), int(part or 0)


ALL_EVENT_NAMES: Final = tuple(
    sorted(
        {f"session_{verb}" for verb in VERBS.values()}
        | {f"kernel_{verb}" for verb in VERBS.values()}
        | {SUCCESS, FAILURE}
    )
)
"""Every name that an event may have."""

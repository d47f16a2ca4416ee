"""Events with good defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from backendai_ray.bus import DomainEvent, events_of
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Reason, Status
from backendai_ray.store import OutboxEvent

T = TypeVar("T")


def committed(number: int, after: Status = Status.RUNNING, reason: Reason = Reason.PROGRESS) -> OutboxEvent:
    change = StatusChange(
        session_id=SessionId(f"session-{number}"),
        kernel_id=None,
        before=Status.PENDING,
        after=after,
        reason=reason,
        message="grüße \u2603",
        at=float(number),
        cause="test",
    )
    return OutboxEvent(
        number=number,
        change=change,
        access_key=AccessKey("AKIAOWNER"),
        session_name=f"s{number}",
        domain="default",
        project="default",
        user="u",
    )


def event(number: int) -> DomainEvent:
    return events_of(committed(number))[0]


def events(first: int, last: int) -> list[DomainEvent]:
    return [event(number) for number in range(first, last + 1)]


async def take(iterator: AsyncIterator[T | None], count: int) -> list[T]:
    """Return the next items that are something."""
    found: list[T] = []
    async for item in iterator:
        if item is not None:
            found.append(item)
        if len(found) == count:
            break
    return found

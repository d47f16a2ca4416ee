"""Status changes as the named events of the official API, for whom they concern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backendai_ray.api.context import Context
from backendai_ray.api.schemas.sessions import iso
from backendai_ray.core.errors import NotFound
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import TERMINAL, Reason, Session, Status

_WORDS: Mapping[Status, str] = {
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
    # The official client's watchers know no error event: what they wait for is the end.
    Status.ERROR: "terminated",
}
_OUTCOMES: Mapping[Reason, str] = {
    Reason.TASK_FINISHED: "session_success",
    Reason.TASK_FAILED: "session_failure",
    Reason.TASK_TIMEOUT: "session_failure",
}
_MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """One event as it is sent."""

    name: str
    data: Mapping[str, Any]


class EventFilter:
    """Turns the changes that one subscriber may see, and wants, into events."""

    def __init__(self, context: Context, access_key: AccessKey, *, session_id: SessionId | None, scope: str) -> None:
        """Set up.

        Args:
            context: The front door's.
            access_key: The subscriber's.
            session_id: Only this session; ``None``: all of the subscriber's.
            scope: ``session``, ``kernel`` or ``*``.
        """
        self._context = context
        self._access_key = access_key
        self._session_id = session_id
        self._scope = scope
        self._sessions: OrderedDict[SessionId, Session | None] = OrderedDict()

    async def events(self, change: StatusChange) -> list[SessionEvent]:
        """Return the events of a change: none, one, or two (a batch session's outcome comes before its end)."""
        if self._session_id is not None and change.session_id != self._session_id:
            return []
        if self._scope != "*" and self._scope != ("session" if change.kernel_id is None else "kernel"):
            return []
        session = await self._session(change)
        if session is None:
            return []
        events = []
        if change.kernel_id is None and change.after is Status.TERMINATING and change.reason in _OUTCOMES:
            exit_code = session.exit_code if session.exit_code is not None else 0
            events.append(SessionEvent(_OUTCOMES[change.reason], {**_data(session, change), "exitCode": exit_code}))
        level = "session" if change.kernel_id is None else "kernel"
        events.append(SessionEvent(f"{level}_{_WORDS[change.after]}", _data(session, change)))
        return events

    def is_last(self, change: StatusChange) -> bool:
        """Return whether nothing more can come for the one session that is watched."""
        return change.session_id == self._session_id and change.kernel_id is None and change.after in TERMINAL

    async def _session(self, change: StatusChange) -> Session | None:
        """Return the change's session if it is the subscriber's; asked for once, and again when its work is done."""
        session_id = change.session_id
        if session_id not in self._sessions or change.after is Status.TERMINATING:
            manager = self._context.services.manager
            try:
                found = await self._context.reach.manager(lambda: manager.session(self._access_key, session_id))
            except NotFound:
                found = None
            self._sessions[session_id] = found
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return self._sessions[session_id]


def _data(session: Session, change: StatusChange) -> dict[str, Any]:
    data: dict[str, Any] = {
        "sessionId": session.id,
        "sessionName": session.spec.name,
        "ownerAccessKey": session.spec.access_key,
        "status": change.after.value,
        "before": change.before.value,
        "reason": change.reason.value,
        "message": change.message,
        "at": iso(change.at),
    }
    kernel = session.kernel(change.kernel_id) if change.kernel_id else None
    if kernel is not None:
        data |= {"kernelId": kernel.id, "clusterRole": kernel.role, "clusterIdx": kernel.index}
    return data

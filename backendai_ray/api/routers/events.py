"""Server-sent events of sessions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from backendai_ray.api.answers import encode
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.api.schemas.sessions import iso
from backendai_ray.bus import DomainEvent, Entry, Gap, parse_event_id
from backendai_ray.bus.events import FAILURE, SUCCESS
from backendai_ray.core.errors import InvalidParameter, NotFound, Unavailable
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.sessions import TERMINAL, Session

router = APIRouter(route_class=ApiRoute, tags=["events"])

HEARTBEAT_S = 10.0
_REPLAY_IDLE_S = 0.2
_BEGINNING = "0-0"
_HEARTBEAT = b": still here\n\n"
_CLOSE = b"event: server_close\ndata: {}\n\n"
_MAX_ID = 64
_MOST_SESSIONS = 10_000


@router.get(
    "/events/session",
    summary="Events of sessions",
    responses={200: {"content": {"text/event-stream": {}}, "description": "The events."}, **errors(404)},
)
async def session_events(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    session_id: Annotated[str | None, Query(alias="sessionId", max_length=64)] = None,
    session_name: Annotated[
        str | None, Query(alias="sessionName", max_length=64, description="`*`: all of the owner's sessions.")
    ] = None,
    name: Annotated[str | None, Query(max_length=64, description="The same, as older clients call it.")] = None,
    scope: Annotated[Literal["*", "session", "kernel"], Query()] = "*",
    group: Annotated[str | None, Query(max_length=64, description="Only of this project.")] = None,
) -> Response:
    """Stream the status changes of a session, or of all, until the session has ended or the client goes.

    `Last-Event-ID` goes on where an earlier stream broke; `events_lost` says that not all since then is kept. While
    the event bus is away the stream stays open, and what happened meanwhile comes when it is back.
    """
    last_id = request.headers.get("last-event-id", "")
    if last_id and (len(last_id) > _MAX_ID or parse_event_id(last_id) is None):
        raise InvalidParameter("Last-Event-ID: not an id of ours", field="Last-Event-ID")
    start = _Start(last_id, 0.0, is_replay=True) if last_id else await _now(context)
    wanted = session_id or session_name or name or "*"
    only: SessionId | None = None
    has_ended = False
    if wanted != "*":
        session = await context.reach.manager(lambda: context.services.manager.session(caller.access_key, wanted))
        only, has_ended = session.id, session.is_terminal
    chosen = _Subscription(context, caller.access_key, only=only, scope=scope, group=group)
    return StreamingResponse(
        chosen.stream(start, has_ended=has_ended),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a stream begins."""

    after: str
    not_before: float
    """Unix seconds; what is older is passed over."""
    is_replay: bool


async def _now(context: Context) -> _Start:
    try:
        ends = await context.services.events.ends()
    except Unavailable:
        # The newest id is not known while the bus is away: later, everything is read and what is older passed over.
        return _Start(_BEGINNING, time.time(), is_replay=False)
    return _Start(ends[1] if ends else _BEGINNING, 0.0, is_replay=False)


class _Subscription:
    """The events that one subscriber may see, and wants."""

    def __init__(
        self, context: Context, access_key: AccessKey, *, only: SessionId | None, scope: str, group: str | None
    ) -> None:
        self._context = context
        self._access_key = access_key
        self._only = only
        self._scope = scope
        self._group = group
        self._sessions: dict[SessionId, Session | None] = {}

    async def stream(self, start: _Start, *, has_ended: bool) -> AsyncIterator[bytes]:
        yield _HEARTBEAT
        if has_ended and not start.is_replay:
            yield _CLOSE
            return
        # Of a session that has ended only what the client missed is to come, and it is there already.
        idle_s = _REPLAY_IDLE_S if has_ended else HEARTBEAT_S
        async with aclosing(self._context.services.events.tail(start.after, idle_s=idle_s)) as items:  # type: ignore[type-var]
            async for item in items:
                match item:
                    case None:
                        yield _CLOSE if has_ended else _HEARTBEAT
                        if has_ended:
                            return
                    case Gap(after, resumed_at):
                        if start.is_replay:
                            yield _message("events_lost", "", {"after": after, "resumedAt": resumed_at})
                    case Entry(event_id, event):
                        if event.at >= start.not_before and self._is_wanted(event):
                            yield _message(event.name, event_id, await self._data(event))
                            if self._is_last(event):
                                yield _CLOSE
                                return

    def _is_wanted(self, event: DomainEvent) -> bool:
        level = "session" if event.kernel_id is None else "kernel"
        return (
            event.access_key == self._access_key
            and (self._only is None or event.session_id == self._only)
            and self._scope in ("*", level)
            and self._group in (None, event.project)
        )

    def _is_last(self, event: DomainEvent) -> bool:
        """Return whether nothing more can come for the one session that is watched."""
        is_end = event.kernel_id is None and event.status in TERMINAL and event.name not in (SUCCESS, FAILURE)
        return self._only is not None and is_end

    async def _data(self, event: DomainEvent) -> dict[str, Any]:
        data: dict[str, Any] = {
            "sessionId": event.session_id,
            "sessionName": event.session_name,
            "ownerAccessKey": event.access_key,
            "status": event.status.value,
            "before": event.before.value,
            "reason": event.reason.value,
            "message": event.message,
            "at": iso(event.at),
        }
        if event.kernel_id is not None:
            data["kernelId"] = event.kernel_id
            session = await self._session(event.session_id)
            kernel = session.kernel(event.kernel_id) if session else None
            if kernel is not None:
                data |= {"clusterRole": kernel.role, "clusterIdx": kernel.index}
        elif event.name in (SUCCESS, FAILURE):
            self._sessions.pop(event.session_id, None)
            session = await self._session(event.session_id)
            data["exitCode"] = session.exit_code if session and session.exit_code is not None else event.name == FAILURE
            data["exitCode"] = int(data["exitCode"])
        return data

    async def _session(self, session_id: SessionId) -> Session | None:
        """Return the session as it was when it was first needed; its containers' roles never change."""
        if session_id not in self._sessions:
            manager = self._context.services.manager
            if len(self._sessions) >= _MOST_SESSIONS:
                self._sessions.clear()
            try:
                self._sessions[session_id] = await self._context.reach.manager(
                    lambda: manager.session(self._access_key, session_id)
                )
            except (NotFound, Unavailable):
                return None
        return self._sessions[session_id]


def _message(name: str, event_id: str, data: dict[str, Any]) -> bytes:
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{id_line}data: ".encode() + encode(data) + b"\n\n"

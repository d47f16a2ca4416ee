"""Server-sent events of sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from backendai_ray.api.answers import encode
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.api.session_events import EventFilter
from backendai_ray.core.errors import InvalidParameter, Unavailable
from backendai_ray.core.ids import SessionId

log = structlog.get_logger()
router = APIRouter(route_class=ApiRoute, tags=["events"])

HEARTBEAT_S = 10.0
_RETRY_S = 1.0
_OLDEST = "0"
_HEARTBEAT = b": still here\n\n"
_CLOSE = b"event: server_close\ndata: {}\n\n"
_MAX_ID = 64


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
    group: Annotated[str | None, Query(description="A project; all are seen for now.")] = None,
) -> Response:
    """Stream the status changes of a session, or of all, until the session has ended or the client goes.

    `Last-Event-ID` goes on where an earlier stream broke. While the event bus is away the stream stays open; what
    happened meanwhile comes when it is back.
    """
    del group
    wanted = session_id or session_name or name or "*"
    last_id = request.headers.get("last-event-id", "")
    if len(last_id) > _MAX_ID:
        raise InvalidParameter("Last-Event-ID: not an id of ours", field="Last-Event-ID")
    only: SessionId | None = None
    has_ended = False
    start_id = last_id or await _newest_id(context)
    if wanted != "*":
        session = await context.reach.manager(lambda: context.services.manager.session(caller.access_key, wanted))
        only, has_ended = session.id, session.is_terminal
    chosen = EventFilter(context, caller.access_key, session_id=only, scope=scope)
    return StreamingResponse(
        _stream(context, chosen, start_id, has_ended=has_ended),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _newest_id(context: Context) -> str | None:
    try:
        return await context.services.changes.newest_id()
    except Unavailable:
        return None


async def _stream(
    context: Context, chosen: EventFilter, start_id: str | None, *, has_ended: bool
) -> AsyncIterator[bytes]:
    # Without a starting point (the bus was away) everything kept is read, and what is older is passed over.
    after_id, not_before = (start_id, 0.0) if start_id else (_OLDEST, time.time())
    yield _HEARTBEAT
    while True:
        try:
            batch = await context.services.changes.read(after_id, 0.0 if has_ended else HEARTBEAT_S)
        except Unavailable as exc:
            log.debug("events.bus_away", error=exc.code)
            yield _HEARTBEAT
            await asyncio.sleep(_RETRY_S)
            continue
        for item in batch:
            after_id = item.id
            if item.change.at < not_before:
                continue
            events = await chosen.events(item.change)
            for position, event in enumerate(events):
                # Only the last event of a change carries its id: a stream that breaks between them sends all again.
                event_id = f"id: {item.id}\n" if position == len(events) - 1 else ""
                yield f"event: {event.name}\n{event_id}data: ".encode() + encode(event.data) + b"\n\n"
            if chosen.is_last(item.change):
                yield _CLOSE
                return
        if not batch:
            if has_ended:
                yield _CLOSE
                return
            yield _HEARTBEAT

"""Server-sent events, read across lost connections without a gap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING

from backendai_ray.client._models import Event
from backendai_ray.core.errors import RequestLost, RequestTimeout

if TYPE_CHECKING:
    from backendai_ray.client._transport import Transport

_SILENCE_S = 60.0
"""A connection that is silent for so long (the server sends comments meanwhile) is taken for dead."""
_RECONNECT_S = 0.2
SERVER_CLOSE = "server_close"
"""The server says that no more events will come."""


async def read_events(
    transport: Transport, path: str, params: Mapping[str, str], last_event_id: str = ""
) -> AsyncIterator[Event]:
    """Yield events as they come, until the server says that there are no more.

    When the connection breaks it is opened again from the last event that came.

    Raises:
        Unavailable: the server stayed away.
    """
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            async with transport.stream("GET", path, params=params, headers=headers, timeout_s=_SILENCE_S) as response:
                lines: list[str] = []
                async for line in response.aiter_lines():
                    if line:
                        lines.append(line)
                        continue
                    event, lines = parse_event(lines), []
                    if event is None:
                        continue
                    if event.name == SERVER_CLOSE:
                        return
                    last_event_id = event.id or last_event_id
                    yield event
        except (RequestLost, RequestTimeout):
            pass  # opened again below, from where it broke
        await asyncio.sleep(_RECONNECT_S)


def parse_event(lines: Iterable[str]) -> Event | None:
    """Read one event from its lines; ``None`` for a comment or an event without data."""
    event_id, name, data = "", "message", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            event_id = value
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
    if name == SERVER_CLOSE:
        return Event(event_id, name, {})
    if not data:
        return None
    try:
        content = json.loads("\n".join(data))
    except ValueError:
        content = {"text": "\n".join(data)}
    return Event(event_id, name, content if isinstance(content, dict) else {"value": content})

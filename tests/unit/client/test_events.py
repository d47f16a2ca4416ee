from __future__ import annotations

import pytest

from backendai_ray.client import AsyncClient, Client, Event, _events
from tests.support.fake_server import FakeServer


async def test_events_go_on_after_a_broken_connection(
    async_client: AsyncClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_events, "_RECONNECT_S", 0.0)
    server.events = [
        [b": hello\n\nid: 1\nevent: session_started\nda", b'ta: {"sessionId": "a"}\n\nid: 2\nevent: ha'],
        [b'id: 2\r\nevent: x\r\ndata: {"n":\r\ndata: 2}\r\n\r\n', b"event: server_close\ndata: {}\n\n"],
    ]
    events = [event async for event in async_client.events()]
    assert events == [Event("1", "session_started", {"sessionId": "a"}), Event("2", "x", {"n": 2})]
    first, second = server.asked("GET", "/events/session")
    assert "last-event-id" not in first.headers
    assert second.headers["last-event-id"] == "1"
    assert first.url.params["sessionName"] == "*"


def test_events_from_plain_code(client: Client, server: FakeServer) -> None:
    server.events = [[b'id: 5\ndata: {"a": 1}\n\n'] * 3]
    for event in client.events(last_event_id="4"):
        assert event == Event("5", "message", {"a": 1})
        break
    assert server.requests[0].headers["last-event-id"] == "4"


@pytest.mark.parametrize(
    ("lines", "event"),
    [
        ([": comment"], None),
        (["id: 1", "event: x"], None),
        (["data: plain words"], Event("", "message", {"text": "plain words"})),
        (["data: [1]"], Event("", "message", {"value": [1]})),
        (["event: server_close"], Event("", "server_close", {})),
    ],
)
def test_odd_events(lines: list[str], event: Event | None) -> None:
    assert _events.parse_event(lines) == event

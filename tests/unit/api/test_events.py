"""Server-sent events."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest


def _events(response: httpx.Response) -> list[tuple[str, str, dict[str, Any]]]:
    events = []
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            events.append((lines["event"], lines.get("id", ""), json.loads(lines["data"])))
    return events


@pytest.fixture
async def ended(client: httpx.AsyncClient, session: str) -> str:
    await client.delete(f"/session/{session}")
    return session


ALL = [
    f"{level}_{verb}"
    for verb in ("scheduled", "preparing", "started", "terminating", "terminated")
    for level in ("kernel", "session")
]


async def test_what_was_missed_is_told_and_the_stream_ends(client: httpx.AsyncClient, ended: str) -> None:
    response = await client.get(f"/events/session?sessionName={ended}", headers={"Last-Event-ID": "0-0"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = _events(response)
    assert [name for name, _, _ in events] == [*ALL, "server_close"]
    last = events[-2]
    assert (last[2]["sessionName"], last[2]["status"], last[2]["reason"]) == (ended, "TERMINATED", "user-requested")
    kernel = events[0][2]
    assert (kernel["clusterRole"], kernel["clusterIdx"]) == ("main", 1)
    rest = await client.get(f"/events/session?name={ended}", headers={"Last-Event-ID": events[5][1]})
    assert [name for name, _, _ in _events(rest)] == [*ALL[6:], "server_close"]


@pytest.mark.parametrize("scope", ["session", "kernel"])
async def test_scopes(client: httpx.AsyncClient, ended: str, scope: str) -> None:
    response = await client.get(f"/events/session?sessionName={ended}&scope={scope}", headers={"Last-Event-ID": "0"})
    assert [name for name, _, _ in _events(response)] == [*(n for n in ALL if n.startswith(scope)), "server_close"]


async def test_of_an_ended_session_nothing_more_comes(client: httpx.AsyncClient, ended: str) -> None:
    response = await client.get(f"/events/session?sessionName={ended}")
    assert [name for name, _, _ in _events(response)] == ["server_close"]


@pytest.mark.parametrize(
    ("command", "outcome", "code"), [("true", "session_success", 0), ("exit 3", "session_failure", 3)]
)
async def test_the_outcome_of_a_batch_session(client: httpx.AsyncClient, command: str, outcome: str, code: int) -> None:
    await client.post("/session", json={"image": "python", "name": "job", "type": "batch", "startupCommand": command})
    response = await client.get("/events/session?sessionName=job&scope=session", headers={"Last-Event-ID": "0"})
    events = _events(response)
    assert [name for name, _, _ in events][-4:] == [
        outcome,
        "session_terminating",
        "session_terminated",
        "server_close",
    ]
    assert next(data for name, _, data in events if name == outcome)["exitCode"] == code


async def test_wrong_questions(client: httpx.AsyncClient, admin: httpx.AsyncClient, session: str) -> None:
    assert (await client.get("/events/session?sessionName=nobody")).status_code == 404
    assert (await admin.get(f"/events/session?sessionName={session}")).status_code == 404
    response = await client.get("/events/session?scope=planet")
    assert response.json()["details"]["field"] == "scope"
    response = await client.get("/events/session", headers={"Last-Event-ID": "yesterday"})
    assert response.json()["details"]["field"] == "Last-Event-ID"

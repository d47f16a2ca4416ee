"""Running code over plain requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from backendai_ray.core.errors import AgentUnavailable, KernelBusy, StaleRoute, UnsupportedByImage
from tests.support.api_fakes import HOLD_IMAGE, FakeCluster


async def _run(client: httpx.AsyncClient, session: str, **body: Any) -> dict[str, Any]:
    response = await client.post(f"/session/{session}", json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


async def test_query_keeps_state(client: httpx.AsyncClient, session: str) -> None:
    await _run(client, session, mode="query", code="x = 20", runId=None)
    result = await _run(client, session, mode="query", code="print(x + 1)", runId=None)
    assert result["console"] == [["stdout", "21\n"]]
    assert (result["status"], result["exitCode"], result["options"], result["files"]) == ("finished", 0, {}, [])


async def test_the_server_names_a_run_that_the_client_did_not(client: httpx.AsyncClient, session: str) -> None:
    first = await _run(client, session, code="1")
    second = await _run(client, session, code="1")
    assert first["runId"] != second["runId"]


async def test_input(client: httpx.AsyncClient, session: str) -> None:
    asked = await _run(client, session, mode="query", code="print('got', input('name? '))", runId="r1")
    assert (asked["status"], asked["options"]) == ("waiting-input", {"is_password": False})
    assert asked["console"] == [["stdout", "name? "]]
    for mode in ("input", "user-input"):
        done = await _run(client, session, mode=mode, code="Ada", runId="r1")
        assert done["status"] == "finished"


async def test_batch_tells_the_runner_only_what_was_given(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    options = {"clean": None, "build": "*", "buildLog": False, "exec": "echo hi"}
    result = await _run(client, session, mode="batch", code="", runId=None, options=options)
    assert result["console"] == [["stdout", "hi\n"]]
    assert cluster.agent.requests[-1].options == {"build": "*", "exec": "echo hi"}


async def test_complete_by_mode_by_path_and_by_a_cursor(client: httpx.AsyncClient, session: str) -> None:
    options = {"row": 0, "col": 2, "line": "pr", "post": ""}
    for body in ({"code": "pr", "options": options}, {"mode": "complete", "code": "pr", "options": options}):
        result = await _run(client, session, **body)
        assert (result["status"], result["completions"]) == ("finished", ["pr_one", "pr2"])
    answer = await client.post(f"/session/{session}/complete", json={"code": "pr", "options": options})
    assert answer.json()["result"] == {"status": "finished", "completions": ["pr_one", "pr2"]}


async def test_interrupt(client: httpx.AsyncClient, session: str, cluster: FakeCluster) -> None:
    assert (await client.post(f"/session/{session}/interrupt")).status_code == 204
    assert cluster.agent.interrupts == 1


async def test_a_known_run_id_never_runs_twice(client: httpx.AsyncClient, session: str) -> None:
    for _ in range(2):
        await _run(client, session, code="n = globals().get('n', 0) + 1", runId="same")
    assert (await _run(client, session, code="print(n)"))["console"] == [["stdout", "1\n"]]


async def test_an_idempotency_key_names_a_run(client: httpx.AsyncClient, session: str) -> None:
    ids = set()
    for _ in range(2):
        response = await client.post(
            f"/session/{session}", json={"code": "m = globals().get('m', 0) + 1"}, headers={"Idempotency-Key": "k"}
        )
        ids.add(response.json()["result"]["runId"])
    assert len(ids) == 1
    assert (await _run(client, session, code="print(m)"))["console"] == [["stdout", "1\n"]]


async def test_output_that_an_answer_lost_is_sent_again(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    """The agent handed the output out, then the call broke: the repeated call must bring it."""
    cluster.fail_next("agent.executed", AgentUnavailable("broke"))
    result = await _run(client, session, code="print('kept')", runId="r")
    assert result["console"] == [["stdout", "kept\n"]]


async def test_output_lost_between_two_polls_is_sent_again(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    asked = await _run(client, session, code="input('first ')\nprint('second')", runId="r")
    assert (asked["status"], asked["seq"]) == ("waiting-input", 1)
    cluster.fail_next("agent.executed", AgentUnavailable("broke"))
    done = await _run(client, session, mode="input", code="x", runId="r")
    assert done["console"] == [["stdout", "second\n"]]
    assert [request.after_seq for request in cluster.agent.requests] == [0, 1, 1]


async def test_a_client_that_says_what_it_has_received(client: httpx.AsyncClient, session: str) -> None:
    first = await _run(client, session, code="print('a'); print('b')", runId="r", options={"after_seq": 0})
    assert len(first["console"]) == 2
    again = await _run(client, session, mode="continue", code="", runId="r", options={"ack": 1})
    assert again["console"] == [["stdout", "b\n"]]


async def test_an_agent_that_restarts_is_waited_for(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    cluster.fail_next("agent.execute", AgentUnavailable("restarting"), times=4)
    assert (await _run(client, session, code="print(1)"))["console"] == [["stdout", "1\n"]]


async def test_a_stale_route_is_looked_up_again_and_a_good_one_is_remembered(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    for _ in range(3):
        await _run(client, session, code="1")
    assert cluster.faults.calls["manager.route"] == 0  # the answer to its creation told the way
    cluster.fail_next("agent.execute", StaleRoute("moved"))
    for _ in range(3):
        await _run(client, session, code="1")
    assert cluster.faults.calls["manager.route"] == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "continue"}, "runId"),
    ({"mode": "input", "code": "x"}, "runId"),
    ({"mode": "query", "runId": "a b"}, "runId"),
    ({"mode": "query", "runId": "r" * 65}, "runId"),
    ({"mode": "dance"}, "mode"),
    ({"code": 5}, "code"),
    ({"surprise": 1}, "surprise"),
    ({"options": {"surprise": 1}}, "options.surprise"),
    ({"options": {"ack": -1}}, "options.ack"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED, ids=[f"{i}-{field}" for i, (_, field) in enumerate(REFUSED)])
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster, body: dict[str, Any], field: str
) -> None:
    response = await client.post(f"/session/{session}", json=body)
    assert response.status_code == 400
    assert response.json()["details"]["field"] == field
    assert not cluster.agent.requests


async def test_what_the_peers_refuse(client: httpx.AsyncClient, session: str, cluster: FakeCluster) -> None:
    cases = [(KernelBusy("too many"), 429), (UnsupportedByImage("no Python in it"), 422)]
    for error, status in cases:
        cluster.fail_next("agent.execute", error)
        response = await client.post(f"/session/{session}", json={"code": "1"})
        assert (response.status_code, response.json()["code"], response.json()["msg"]) == (
            status,
            error.code,
            error.message,
        )
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    response = await client.post("/session/waits", json={"code": "1"})
    assert (response.status_code, response.json()["details"]["status"]) == (409, "PENDING")
    response = await client.post(f"/session/{session}", json={"mode": "continue", "runId": "unknown"})
    assert (response.status_code, response.json()["code"]) == (404, "run-not-found")

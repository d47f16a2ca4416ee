"""Every error has one shape, whatever it comes from."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from backendai_ray.api.problems import Problem, problem_body
from backendai_ray.core.errors import InternalError, InvalidTransition, all_errors, error_from_code
from tests.support.api_fakes import FakeCluster


def check(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    problem = Problem.model_validate(body)
    assert set(body) == set(Problem.model_fields)
    assert problem.status == status
    assert problem.msg
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.type.startswith("https://api.backend.ai/probs/")
    return body


@pytest.mark.parametrize("code", sorted(all_errors()))
async def test_every_class_of_the_tree(
    client: httpx.AsyncClient, cluster: FakeCluster, session: str, code: str
) -> None:
    error = error_from_code(code, "a sentence", {"fact": 1})
    cluster.fail_next("manager.logs", error, times=100)
    cluster.fail_next("agent.interrupt", error, times=100)
    raw = problem_body(error, "id")
    problem = Problem.model_validate_json(raw)
    assert problem.code == code
    if code not in ("internal-error", "backend-error"):
        assert (problem.msg, problem.details) == ("a sentence", {"fact": 1})
    if code in ("stale-route", "kernel-not-found", "agent-unavailable"):
        return  # those are tried again
    check(await client.post(f"/session/{session}/interrupt"), error.http_status)


async def test_no_such_path_and_no_such_method(client: httpx.AsyncClient) -> None:
    assert check(await client.get("/folders"), 404)["code"] == "not-found"
    response = await client.put("/session/x")
    assert check(response, 405)["code"] == "method-not-allowed"
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST", "PATCH", "DELETE"}


async def test_an_unexpected_error_tells_its_id_and_nothing_else(
    client: httpx.AsyncClient, cluster: FakeCluster, session: str
) -> None:
    cluster.fail_next("manager.session", ZeroDivisionError("secret internals"))
    with capture_logs() as logs:
        response = await client.get(f"/session/{session}", headers={"X-Request-ID": "find-me"})
    body = check(response, 500)
    assert "secret" not in response.text
    assert (body["code"], body["request_id"]) == ("internal-error", "find-me")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["http.unexpected_error"]
    cluster.fail_next("manager.session", InternalError("peer: KeyError", traceback="File x.py"))
    response = await client.get(f"/session/{session}")
    assert "KeyError" not in response.text
    assert "x.py" not in response.text
    cluster.fail_next("manager.session", InvalidTransition("told on purpose"))
    assert check(await client.get(f"/session/{session}"), 500)["msg"] == "told on purpose"


async def test_request_ids_are_taken_or_made(client: httpx.AsyncClient) -> None:
    for given, taken in (("abc-1", True), ("", False), ("a b", False), ("x" * 65, False), ("é", False)):
        response = await client.get("/session", headers=[(b"X-Request-ID", given.encode())])
        assert (response.headers["x-request-id"] == given) is taken
    first, second = [(await client.get("/session")).headers["x-request-id"] for _ in range(2)]
    assert first != second


async def test_the_openapi_document_is_complete(anonymous: httpx.AsyncClient, app: FastAPI) -> None:
    document = (await anonymous.get("/openapi.json")).json()
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    assert len(operations) > 25
    refs = set(document["components"]["schemas"])
    for path, method, operation in operations:
        assert operation.get("summary"), (method, path)
        assert operation.get("description"), (method, path)
        problems = [s for s, r in operation["responses"].items() if "application/problem+json" in r.get("content", {})]
        assert problems or path == "/health/livez", (method, path)
    text = str(document)
    assert all(f"'#/components/schemas/{name}'" in text for name in ("Problem", "CreateSession", "Execute"))
    assert {"Problem", "CreateSession", "SessionConfig", "Execute", "SessionView"} <= refs
    assert "HTTPValidationError" not in str(document["paths"])

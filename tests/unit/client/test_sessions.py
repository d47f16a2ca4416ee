"""Sessions: asking for them, waiting for them, finding and ending them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from backendai_ray.client import AsyncClient, SessionInfo
from backendai_ray.core.errors import (
    ImageNotFound,
    InsufficientResources,
    KernelStartFailed,
    NameInUse,
    RequestTimeout,
    SessionEnded,
    SessionNotFound,
)
from tests.support.fake_server import FakeServer, problem
from tests.support.waiting import wait_until_async

START = [
    ("PENDING", "waiting-for-resources", "no node has 4 cores"),
    ("PREPARING", "placed", "on node-1"),
    ("CREATING", "progress", ""),
    ("RUNNING", "started", ""),
]


async def test_create_waits_until_it_runs_and_tells_the_way(async_client: AsyncClient, server: FakeServer) -> None:
    server.start_path = START
    seen: list[tuple[str, str]] = []
    session = await async_client.sessions.create("python", on_progress=lambda i: seen.append((i.status, i.message)))
    assert seen == [(status, message) for status, _, message in START]
    info = await session.info()
    assert (info.is_running, info.where, info.resources) == (True, ("node-1",), {"cpu": "1", "mem": "512m"})
    assert info.kernels[0].hostname == "main1"


async def test_create_sends_what_was_asked_for(async_client: AsyncClient, server: FakeServer) -> None:
    await async_client.sessions.create(
        "python",
        name="work",
        type="batch",
        cpu=0.5,
        mem="1g",
        resources={"cuda.device": 1},
        shmem="64m",
        cluster_size=2,
        cluster_mode="multi-node",
        env={"A": "b"},
        startup_command="true",
        batch_timeout_s=5,
        depends_on=["other"],
        dependency_failure="start-anyway",
        pending_timeout_s=60,
        agents=["node-1"],
        tag="mine",
        wait=False,
    )
    [request] = server.asked("POST", "/session")
    assert json.loads(request.content) == {
        "image": "python",
        "name": "work",
        "type": "batch",
        "clusterSize": 2,
        "clusterMode": "multi-node",
        "startupCommand": "true",
        "batch_timeout": 5,
        "dependencies": ["other"],
        "dependency_failure": "start-anyway",
        "pending_timeout": 60,
        "tag": "mine",
        "reuseIfExists": False,
        "enqueueOnly": True,
        "config": {
            "resources": {"cpu": "0.5", "mem": "1g", "cuda.device": "1"},
            "resource_opts": {"shmem": "64m"},
            "environ": {"A": "b"},
            "agentList": ["node-1"],
        },
    }


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (("CANCELLED", "image-not-found", "no image nosuch"), ImageNotFound),
        (("ERROR", "start-failed", "the runner did not answer"), KernelStartFailed),
        (("TERMINATED", "user-requested", "ended by its owner"), KernelStartFailed),
    ],
)
async def test_a_start_that_fails_says_why(
    async_client: AsyncClient, server: FakeServer, end: tuple[str, str, str], error: type[Exception]
) -> None:
    server.start_path = [end]
    with pytest.raises(error, match=end[2]):
        await async_client.sessions.create("nosuch")


async def test_what_does_not_start_in_time_is_ended_again(async_client: AsyncClient, server: FakeServer) -> None:
    server.start_path = [("PENDING", "waiting-for-resources", "no node has 64 cores")]
    with pytest.raises(RequestTimeout, match="no node has 64 cores"):
        await async_client.sessions.create("python", cpu=64, timeout=0.1)
    assert [s.status for s in server.sessions.values()] == ["TERMINATED"]


@pytest.mark.parametrize("requests_before", [0, 1, 2, 5])
async def test_a_cancelled_create_leaves_nothing(
    async_client: AsyncClient, server: FakeServer, requests_before: int
) -> None:
    server.start_path = []

    async def has_begun() -> bool:
        return len(server.requests) >= requests_before

    task = asyncio.create_task(async_client.sessions.create("python"))
    await asyncio.sleep(0)
    await wait_until_async(has_begun, interval_s=0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [s.status for s in server.sessions.values()] == ["TERMINATED"]


async def test_names_in_use_and_reuse(async_client: AsyncClient, server: FakeServer) -> None:
    first = await async_client.sessions.create("python", name="work")
    with pytest.raises(NameInUse):
        await async_client.sessions.create("python", name="work")
    again = await async_client.sessions.create("python", name="work", reuse=True)
    assert (again.id, first.created, again.created) == (first.id, True, False)
    assert len(server.sessions) == 1


async def test_a_session_is_ended_with_its_block(async_client: AsyncClient, server: FakeServer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await async_client.sessions.create("python") as session:
            raise ZeroDivisionError
    assert server.sessions[session.id].status == "TERMINATED"
    await session.destroy()  # ending it again is fine
    server.fail_next(problem(SessionNotFound()))
    await session.destroy()


async def test_waiting_for_an_end(async_client: AsyncClient, server: FakeServer) -> None:
    server.start_path = [("RUNNING", "started", "")]
    session = await async_client.sessions.create("python", type="batch", startup_command="exit 3")
    kept = server.sessions[session.id]
    with pytest.raises(RequestTimeout, match="still RUNNING"):
        await session.wait(timeout=0.05)
    kept.exit_code = 3
    kept.path.append(("TERMINATED", "task-failed", "exit code 3"))
    info = await session.wait(timeout=5)
    assert (info.status, info.exit_code, info.message) == ("TERMINATED", 3, "exit code 3")


async def test_a_batch_session_may_have_ended_before_one_looks(async_client: AsyncClient, server: FakeServer) -> None:
    server.start_path = [("TERMINATED", "task-finished", "exit code 0")]

    session = await async_client.sessions.create("python", type="batch", startup_command="true", wait=False)
    server.sessions[session.id].started = True
    assert (await session.wait("RUNNING")).is_terminal


async def test_an_interactive_session_that_ended_is_no_running_one(
    async_client: AsyncClient, server: FakeServer
) -> None:
    session = await async_client.sessions.create("python")
    server.sessions[session.id].path.append(("TERMINATED", "out-of-memory", "killed for memory"))
    await session.info()
    with pytest.raises(SessionEnded, match="killed for memory"):
        await session.wait("RUNNING")


async def test_waiting_asks_at_a_bounded_rate(async_client: AsyncClient, server: FakeServer) -> None:
    """A server that answers at once instead of holding the question must not be hammered."""
    server.start_path = []
    with pytest.raises(RequestTimeout):
        await async_client.sessions.create("python", timeout=0.5)
    assert len(server.asked("GET", "/session/[^/]+")) < 15


async def test_listing_and_iterating(async_client: AsyncClient, server: FakeServer) -> None:
    made = [await async_client.sessions.create("python", name=f"s{n}") for n in range(7)]
    await made[0].destroy()
    page = await async_client.sessions.list(limit=2, offset=1)
    assert ([i.name for i in page.items], page.total) == (["s5", "s4"], 6)
    names = [info.name async for info in async_client.sessions.iterate(page_size=4)]
    assert names == ["s6", "s5", "s4", "s3", "s2", "s1"]
    ended = await async_client.sessions.list(statuses=["TERMINATED"])
    assert [i.name for i in ended.items] == ["s0"]


async def test_one_session_by_name(async_client: AsyncClient, server: FakeServer) -> None:
    made = await async_client.sessions.create("python", name="work")
    found = await async_client.sessions.get("work")
    assert (found.id, found.name, found.created) == (made.id, "work", False)
    await found.rename("other")
    assert (found.name, server.sessions[made.id].name) == ("other", "other")
    await found.restart()
    assert (await found.wait("RUNNING")).is_running
    with pytest.raises(SessionNotFound):
        await async_client.sessions.get("../agents")
    with pytest.raises(SessionNotFound):
        await async_client.sessions.get("work")


async def test_what_a_session_tells(async_client: AsyncClient, server: FakeServer) -> None:
    session = await async_client.sessions.create("python", name="work")
    server.sessions[session.id].logs = "a log\n"
    assert await session.logs() == "a log\n"
    assert [(c.before, c.after, c.reason) for c in await session.history()] == [("PENDING", "RUNNING", "started")]
    [entry] = await session.scheduling_history()
    assert (entry.verdict, entry.code, entry.number) == ("refused", "not-enough", 1)
    explanation = await session.explain()
    assert (explanation.code, explanation.nodes[0].shortfall) == ("not-enough", {"cpu": "1"})
    assert (explanation.session_id, explanation.position, explanation.behind) == (session.id, 2, "first")
    assert explanation.closest == explanation.nodes[0]
    assert explanation.estimate is not None
    assert (explanation.estimate.at, explanation.estimate.basis) == (
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "time-limits",
    )
    graph = await session.dependency_graph()
    assert (graph.id, graph.status, graph.depends_on[0].name) == (session.id, "RUNNING", "before")
    [runtime] = await async_client.runtimes("r-image")
    assert (runtime.name, runtime.language, runtime.is_default) == ("ir", "R", True)
    [node] = await async_client.agents()
    assert (node.id, node.capacity, node.resource_group) == ("node-1", {"cpu": "2", "mem": "4g"}, "default")


async def test_a_dry_run_asks_for_what_create_asks_for(async_client: AsyncClient, server: FakeServer) -> None:
    asked: dict[str, Any] = {"name": "work", "cpu": 2, "resources": {"cuda.device": 1}, "depends_on": ["a"], "tag": "t"}
    told = await async_client.sessions.dry_run("python", **asked)
    assert (told.session_id, told.session_name, told.is_placeable) == ("", "rehearsed", False)
    await async_client.sessions.create("python", **asked, wait=False)
    [request] = server.asked("POST", "/session")
    assert server.rehearsed == [json.loads(request.content)]


def test_records_of_newer_servers_are_read() -> None:
    info = SessionInfo.model_validate({"sessionId": "x", "status": "HIBERNATING", "newKey": {"a": 1}, "exitCode": None})
    assert (info.status, info.is_terminal, info.exit_code) == ("HIBERNATING", False, None)


async def test_a_failed_destroy_is_told(async_client: AsyncClient, server: FakeServer) -> None:
    session = await async_client.sessions.create("python")
    server.fail_next(problem(InsufficientResources("odd")), httpx.Response(200, json={}))
    with pytest.raises(InsufficientResources):
        await session.destroy()

"""Running code: order, input, interruption, and output that survives lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from backendai_ray.client import AsyncClient, AsyncSession, InputRequest, OutputChunk
from backendai_ray.core.errors import BadRequest, RequestTimeout
from backendai_ray.core.execution import OutputType, RunStatus
from tests.support.fake_server import FakeServer, Step
from tests.support.waiting import wait_until_async


@pytest.fixture
async def session(async_client: AsyncClient) -> AsyncSession:
    return await async_client.sessions.create("python")


def counting(code: str, options: dict[str, Any]) -> Iterable[Step]:
    return [
        *(Step([["stdout", f"{n}\n"], ["stderr", f"e{n}\n"]], "continued", None) for n in range(5)),
        Step([["html", "<b>x</b>"], ["media", ["image/png", "iVBO"]]], "finished", 3),
    ]


async def test_a_run_has_all_of_its_output_in_order(session: AsyncSession, server: FakeServer) -> None:
    server.program = counting
    result = await session.run("whatever")
    assert result.stdout == "0\n1\n2\n3\n4\n"
    assert result.stderr == "e0\ne1\ne2\ne3\ne4\n"
    assert [c.type for c in result.console][:4] == ["stdout", "stderr", "stdout", "stderr"]
    assert (result.html, result.media) == (("<b>x</b>",), (("image/png", "iVBO"),))
    assert (result.exit_code, result.status, result.ok) == (3, RunStatus.FINISHED, False)


async def test_output_comes_while_it_is_written(session: AsyncSession, server: FakeServer) -> None:
    server.program = counting
    run = session.stream("whatever")
    async for chunk in run:
        assert chunk == OutputChunk(OutputType.STDOUT, "0\n")
        break
    assert not run.is_finished
    assert len(server.asked("POST", "/session/[^/]+")) == 1
    rest = await run.result()
    assert rest.stdout == "1\n2\n3\n4\n", "what was left after an early break can be read on"


@pytest.mark.parametrize("lost", range(6))
async def test_a_lost_answer_loses_and_doubles_nothing(session: AsyncSession, server: FakeServer, lost: int) -> None:
    """The front door dies after it did what was asked, at each step of the run in turn."""
    server.program = counting
    run = session.stream("whatever")
    console = []
    count = 0
    async for chunk in run:
        console.append(chunk.data)
        count += 1
        if count == 2 * lost:
            server.lose_next_answer()
            server.fail_next(httpx.ConnectError("connection refused"))
    if lost == 0:
        server.lose_next_answer()
    expected = [text for n in range(5) for text in (f"{n}\n", f"e{n}\n")]
    assert console == [*expected, "<b>x</b>", "iVBO"]
    assert server.started_runs == 1


async def test_the_first_answer_lost_starts_one_run(session: AsyncSession, server: FakeServer) -> None:
    server.lose_next_answer()
    assert (await session.run("x")).stdout == "ran x\n"
    assert server.started_runs == 1


def asking(code: str, options: dict[str, Any]) -> Iterable[Step]:
    return [
        Step([["stdout", "hello\nname? "]], "waiting-input", None, {"is_password": False}),
        Step([["stdout", "password? "]], "waiting-input", None, {"is_password": True}),
        Step([["stdout", "thanks\n"]]),
    ]


async def test_input_is_asked_for_line_by_line(session: AsyncSession, server: FakeServer) -> None:
    server.program = asking
    asked: list[InputRequest] = []

    def answer(request: InputRequest) -> str:
        asked.append(request)
        return f"line {len(asked)}"

    result = await session.run("x", input=answer)
    assert result.stdout == "hello\nname? password? thanks\n"
    assert asked == [InputRequest(False, "name? "), InputRequest(True, "password? ")]
    [run] = server.sessions[session.id].runs.values()
    assert run.inputs == ["line 1", "line 2"]


async def test_input_may_be_a_text_or_asynchronous(session: AsyncSession, server: FakeServer) -> None:
    server.program = asking

    async def answer(request: InputRequest) -> str:
        await asyncio.sleep(0)
        return "later"

    await session.run("x", input="one\ntwo\n")
    await session.run("x", input=answer)
    first, second = server.sessions[session.id].runs.values()
    assert (first.inputs, second.inputs) == (["one", "two"], ["later", "later"])


async def test_lost_input_is_not_typed_twice(session: AsyncSession, server: FakeServer) -> None:
    """1. The program waits. 2. The line arrives there. 3. The answer to it is lost. It must not be typed again."""
    server.program = asking

    def answer(request: InputRequest) -> str:
        server.lose_next_answer()
        return "once"

    result = await session.run("x", input=answer)
    assert result.stdout == "hello\nname? password? thanks\n"
    [run] = server.sessions[session.id].runs.values()
    assert run.inputs == ["once", "once"]


async def test_input_that_never_arrived_is_typed_again(session: AsyncSession, server: FakeServer) -> None:
    server.program = asking

    def answer(request: InputRequest) -> str:
        server.fail_next(httpx.ReadError("connection reset"))
        return "again"

    await session.run("x", input=answer)
    [run] = server.sessions[session.id].runs.values()
    assert run.inputs == ["again", "again"]


@pytest.mark.parametrize("given", [None, "only one line"])
async def test_a_program_that_gets_no_input_is_interrupted(
    session: AsyncSession, server: FakeServer, given: str | None
) -> None:
    server.program = asking
    with pytest.raises(BadRequest, match="input"):
        await session.run("x", input=given)
    assert server.sessions[session.id].interrupts == 1


def endless(code: str, options: dict[str, Any]) -> Iterable[Step]:
    return [Step([["stdout", "."]], "continued", None) for _ in range(20_000)]


async def test_a_run_that_takes_too_long_is_interrupted(session: AsyncSession, server: FakeServer) -> None:
    server.program = endless
    with pytest.raises(RequestTimeout, match="interrupted"):
        await session.run("x", timeout=0.05)
    assert server.sessions[session.id].interrupts == 1


async def test_a_cancelled_run_is_interrupted(session: AsyncSession, server: FakeServer) -> None:
    server.program = endless

    async def has_begun() -> bool:
        return bool(server.sessions[session.id].runs)

    task = asyncio.create_task(session.run("x"))
    await wait_until_async(has_begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.sessions[session.id].interrupts == 1


async def test_batch_tells_how_each_step_ended(session: AsyncSession, server: FakeServer) -> None:
    seen: list[dict[str, Any]] = []

    def batch(code: str, options: dict[str, Any]) -> Iterable[Step]:
        seen.append(options)
        return [Step([], "clean-finished", 0), Step([["stdout", "cc\n"]], "build-finished", 1), Step([], "finished", 2)]

    server.program = batch
    result = await session.batch(clean="make clean", build="make", exec="./main")
    assert (result.phases, result.exit_code, result.stdout) == ({"clean": 0, "build": 1}, 2, "cc\n")
    told = {"clean": "make clean", "build": "make", "buildLog": True, "exec": "./main", "after_seq": 0}
    assert seen == [told]


async def test_completion_says_where_the_cursor_is(session: AsyncSession) -> None:
    [line, options] = await session.complete("import os\nos.pa + 1", cursor=len("import os\nos.pa"))
    assert line == "os.pa + 1!"
    assert "'row': 1, 'col': 5" in options
    assert "'post': ' + 1'" in options

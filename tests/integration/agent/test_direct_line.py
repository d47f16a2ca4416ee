"""The direct line to an agent: real sockets, a target that records, and a peer that stands for the way through Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from actors.direct_line import LineServer, NearAgent
from backendai_ray.core.errors import AgentUnavailable, InternalError, StaleRoute


class Target:
    """Stands for an agent."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def execute(self, request: Any) -> Any:
        return request

    async def interrupt(self, route: Any) -> None:
        raise StaleRoute(f"{route} has moved", moved_to="there")

    async def complete(self, route: Any, code: str, options: dict[str, Any]) -> Any:
        raise ValueError(code)

    async def read_pty(self, route: Any, pty_id: str, after_seq: int, wait_s: float) -> tuple[int, bytes, bool]:
        self.entered.set()
        await self.gate.wait()
        return after_seq, b"late", False

    async def destroy_kernels(self, kernel_ids: Any) -> str:
        raise AssertionError("never called on a line")


class RayWay:
    """Stands for the peer: says which way a call came."""

    name = "agent:near"

    async def execute(self, request: Any) -> str:
        return "through Ray"

    async def destroy_kernels(self, kernel_ids: Any) -> str:
        return "through Ray"

    async def complete(self, *args: Any) -> str:
        return "through Ray"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ("a-long-folder-name-" * 8) / "lines" / "agent.sock"  # longer than a socket's address may be


@pytest.fixture
async def target() -> Target:
    return Target()


@pytest.fixture
async def server(path: Path, target: Target) -> AsyncIterator[LineServer]:
    server = LineServer(target)
    await server.open(path)
    yield server
    await server.close()


@pytest.fixture
def agent(path: Path) -> Any:
    return NearAgent(RayWay(), path)  # type: ignore[arg-type]


@pytest.mark.usefixtures("server")
async def test_answers_come_back_whole_and_to_whom_asked(agent: Any) -> None:
    assert await asyncio.gather(*(agent.execute(number) for number in range(200))) == list(range(200))
    large = b"x" * (8 << 20)
    assert await agent.execute(large) == large


@pytest.mark.usefixtures("server")
async def test_errors_come_out_as_they_were_raised(agent: Any) -> None:
    with pytest.raises(StaleRoute, match="r has moved") as caught:
        await agent.interrupt("r")
    assert caught.value.details["moved_to"] == "there"
    with pytest.raises(InternalError, match="ValueError: odd"):
        await agent.complete("r", "odd", {})


@pytest.mark.usefixtures("server")
async def test_a_call_that_waits_holds_up_nobody(agent: Any, target: Target) -> None:
    waiting = asyncio.create_task(agent.read_pty("r", "p", 3, 10.0))
    await target.entered.wait()
    assert await agent.execute("meanwhile") == "meanwhile"
    target.gate.set()
    assert await waiting == (3, b"late", False)


@pytest.mark.usefixtures("server")
async def test_what_changes_durable_things_goes_through_ray(agent: Any) -> None:
    assert await agent.destroy_kernels(["k"]) == "through Ray"


async def test_only_what_a_line_is_for_is_answered(server: LineServer, agent: Any) -> None:
    await agent.execute(1)
    line = agent._line
    with pytest.raises(InternalError, match="destroy_kernels is not called on a direct line"):
        await line.call("destroy_kernels", (["k"],), {})


def leave_something_else_at(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("no socket")


async def test_without_a_line_calls_go_through_ray(agent: Any, path: Path) -> None:
    assert await agent.execute(1) == "through Ray"
    leave_something_else_at(path)
    assert await agent.execute(1) == "through Ray"


async def test_an_agent_that_hangs_up_fails_the_call_and_the_next_one_finds_its_successor(
    server: LineServer, agent: Any, target: Target, path: Path
) -> None:
    waiting = asyncio.create_task(agent.read_pty("r", "p", 3, 10.0))
    await target.entered.wait()
    await server.close()
    with pytest.raises(AgentUnavailable, match="agent:near has hung up"):
        await waiting
    assert await agent.execute(1) == "through Ray"  # the socket is still there, and nobody behind it
    successor = LineServer(target)
    await successor.open(path)
    assert await agent.execute(2) == 2
    await successor.close()


@pytest.mark.usefixtures("server")
async def test_an_agent_that_is_silent_is_given_up(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.direct_line.timeout_of", lambda *_: 0.05)
    with pytest.raises(AgentUnavailable, match="did not answer read_pty"):
        await agent.read_pty("r", "p", 3, 0.0)
    assert await agent.execute(1) == 1


def test_on_the_loop_that_ray_gives_its_actors(path: Path) -> None:
    """It is uvloop's, whose transports are not asyncio's."""

    async def there_and_back() -> None:
        server = LineServer(Target())
        await server.open(path)
        agent: Any = NearAgent(RayWay(), path)  # type: ignore[arg-type]
        assert await agent.execute(1) == 1
        with pytest.raises(StaleRoute):
            await agent.interrupt("r")
        await server.close()

    uvloop.run(there_and_back())

"""WebSockets: running code and terminals."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from backendai_ray.core.errors import AgentUnavailable, KernelBusy
from tests.integration.api.conftest import Server
from tests.support.api_fakes import HOLD_IMAGE
from tests.support.waiting import wait_until_async

EXECUTE = "/stream/session/sess/execute"
PTY = "/stream/session/sess/pty"


async def _frames(socket: ClientConnection) -> list[dict[str, Any]]:
    """Return the frames until the connection is closed, in good order or with an error."""
    frames = []
    try:
        async for text in socket:
            frames.append(json.loads(text))  # noqa: PERF401 - those before the error count
    except ConnectionClosedError:
        pass
    return frames


async def _frame(socket: ClientConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await socket.recv())
    return frame


async def test_a_query_as_the_official_client_sends_it(server: Server, session: str) -> None:
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "print('hello')", "mode": "query", "options": {}}))
        (frame,) = await _frames(socket)
    assert (frame["status"], frame["exitCode"], frame["console"]) == ("finished", 0, [["stdout", "hello\n"]])
    assert socket.close_code == 1000


async def test_a_batch_as_the_official_client_sends_it(server: Server, session: str) -> None:
    options = {"clean": None, "build": None, "buildLog": False, "exec": "echo out; exit 4"}
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "", "mode": "batch", "options": options}))
        frames = await _frames(socket)
    assert (frames[-1]["status"], frames[-1]["exitCode"]) == ("finished", 4)


async def test_input_is_a_plain_text_frame(server: Server, session: str) -> None:
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "print('got ' + input('? '))", "mode": "query", "options": {}}))
        asked = await _frame(socket)
        assert (asked["status"], asked["options"]) == ("waiting-input", {"is_password": False})
        await socket.send("{not json}")
        frames = await _frames(socket)
    assert frames[-1]["console"] == [["stdout", "got {not json}\n"]]


@pytest.mark.parametrize(
    "first",
    ["{", "[]", '{"mode": "input", "code": "x"}', '{"mode": "continue"}', '{"surprise": 1}', '{"code": 5}'],
)
async def test_first_frames_without_sense(server: Server, session: str, first: str) -> None:
    async with server.websocket(EXECUTE) as socket:
        await socket.send(first)
        (frame,) = await _frames(socket)
    assert frame["status"] == "error"
    assert frame["console"][0][0] == "stderr"  # what the official client shows
    assert not server.cluster.agent.requests


async def test_errors_of_the_peers(server: Server, session: str) -> None:
    server.cluster.fail_next("agent.execute", AgentUnavailable("restarting"), times=2)
    server.cluster.fail_next("agent.execute", KernelBusy("too many"))
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "1", "mode": "query"}))
        (frame,) = await _frames(socket)
    assert (frame["code"], frame["msg"]) == ("kernel-busy", "too many")
    server.cluster.fail_next("agent.execute", ZeroDivisionError("secret"))
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "1", "mode": "query"}))
        (frame,) = await _frames(socket)
    assert frame["code"] == "internal-error"
    assert "secret" not in json.dumps(frame)


async def test_a_handshake_that_is_refused_says_why(server: Server, session: str, client: Any) -> None:
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    cases = {"/stream/session/nobody/execute": 404, "/stream/session/waits/pty": 409, "/stream/nothing": 404}
    for target, status in cases.items():
        with pytest.raises(InvalidStatus) as refused:
            async with server.websocket(target):
                pass
        response = refused.value.response
        assert response.status_code == status
        assert json.loads(response.body or b"")["status"] == status
    with pytest.raises(InvalidStatus) as refused:
        async with connect(server.url.replace("http", "ws") + EXECUTE, proxy=None):
            pass
    assert refused.value.response.status_code == 401


async def test_a_handshake_is_good_once(server: Server, session: str) -> None:
    url, headers = server.url.replace("http", "ws") + PTY, server.headers("GET", PTY)
    async with connect(url, additional_headers=headers, proxy=None):
        pass
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, additional_headers=headers, proxy=None):
            pass
    assert json.loads(refused.value.response.body or b"")["code"] == "stale-signature"


async def _interrupted(server: Server) -> bool:
    return server.cluster.agent.interrupts > 0


async def test_a_client_that_hangs_up_interrupts_its_run(server: Server, session: str) -> None:
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": "import time; time.sleep(3)", "mode": "query"}))
        await wait_until_async(lambda: _started(server))
    await wait_until_async(lambda: _interrupted(server))


async def _started(server: Server) -> bool:
    return bool(server.cluster.agent.runs)


async def test_a_run_with_a_name_goes_on_and_is_continued(server: Server, session: str) -> None:
    code = "print('one'); print('got ' + input())"
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"code": code, "mode": "query", "runId": "mine"}))
        first = await _frame(socket)
        assert first["console"] == [["stdout", "one\n"], ["stdout", ""]]
    async with server.websocket(EXECUTE) as socket:
        await socket.send(json.dumps({"mode": "continue", "runId": "mine", "options": {"ack": 1}}))
        assert (await _frame(socket))["console"] == [["stdout", ""]]
        await socket.send("it")
        assert (await _frames(socket))[-1]["console"] == [["stdout", "got it\n"]]
    assert not server.cluster.agent.interrupts


# ── terminals ──


def _out(frame: dict[str, Any]) -> bytes:
    assert frame["type"] == "out", frame
    return base64.b64decode(frame["data"])


def _stdin(data: bytes) -> str:
    return json.dumps({"type": "stdin", "chars": base64.b64encode(data).decode()})


async def test_a_terminal(server: Server, session: str) -> None:
    agent = server.cluster.agent
    async with server.websocket(PTY) as socket:
        assert _out(await _frame(socket)) == b"$ "
        await socket.send(_stdin("ls ä\n".encode()))
        assert _out(await _frame(socket)) == "ls ä\n".encode()
        await socket.send(json.dumps({"type": "resize", "rows": 50, "cols": 120}))
        await socket.send(json.dumps({"type": "ping"}))
        assert (await _frame(socket))["type"] == "pong"
        assert agent.pty_sizes == [(24, 80), (50, 120)]
        await socket.send(_stdin(b"exit\n"))
        frames = await _frames(socket)
    assert [frame["type"] for frame in frames] == ["out", "exit"]
    await wait_until_async(lambda: _closed(server))


async def _closed(server: Server) -> bool:
    return bool(server.cluster.agent.closed_ptys) and not server.cluster.agent.ptys


async def test_a_terminal_is_closed_when_the_client_goes(server: Server, session: str) -> None:
    async with server.websocket(PTY) as socket:
        await socket.recv()
    await wait_until_async(lambda: _closed(server))


async def test_a_terminal_restarts(server: Server, session: str) -> None:
    async with server.websocket(PTY) as socket:
        await socket.recv()
        before = set(server.cluster.agent.ptys)
        await socket.send(_stdin(b"x"))
        assert _out(await _frame(socket)) == b"x"
        await socket.send(json.dumps({"type": "restart"}))
        assert _out(await _frame(socket)) == b"$ "
        assert not before & set(server.cluster.agent.ptys)


async def test_frames_without_sense_do_not_end_a_terminal(server: Server, session: str) -> None:
    async with server.websocket(PTY) as socket:
        await socket.recv()
        wrong = ["{", "[]", '{"type": "dance"}', '{"type": "stdin", "chars": "%%"}', '{"type": "stdin"}']
        wrong += ['{"type": "resize", "rows": 0, "cols": 1}', '{"type": "resize", "rows": "x", "cols": 1}']
        for text in wrong:
            await socket.send(text)
            assert (await _frame(socket))["type"] == "error"
        await socket.send(_stdin(b"still"))
        assert _out(await _frame(socket)) == b"still"


async def test_a_terminal_with_a_name_is_found_again(server: Server, session: str) -> None:
    target = f"{PTY}?ptyId=mine"
    async with server.websocket(target) as socket:
        seq = (await _frame(socket))["seq"]
    server.cluster.agent.ptys["mine"] += b"meanwhile"
    async with server.websocket(f"{target}&afterSeq={seq}") as socket:
        assert _out(await _frame(socket)) == b"meanwhile"
    assert "mine" in server.cluster.agent.ptys
    for bad in ("?ptyId=a/b", "?afterSeq=x"):
        with pytest.raises(InvalidStatus) as refused:
            async with server.websocket(PTY + bad):
                pass
        assert refused.value.response.status_code == 400


async def test_a_terminal_outlives_a_restart_of_the_agent(server: Server, session: str) -> None:
    async with server.websocket(PTY) as socket:
        await socket.recv()
        server.cluster.fail_next("agent.read_pty", AgentUnavailable("restarting"), times=2)
        await socket.send(_stdin(b"on"))
        assert _out(await _frame(socket)) == b"on"


async def test_binary_frames_end_the_connection(server: Server, session: str) -> None:
    async with server.websocket(EXECUTE) as socket:
        await socket.send(b"\x00")
        with pytest.raises(ConnectionClosed):
            await socket.recv()

"""The HTTP server itself: streaming, limits, hang-ups, restarts, TLS."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from backendai_ray.config import Settings
from backendai_ray.core.errors import BusUnavailable, InvalidParameter
from backendai_ray.core.execution import RunOutput, RunStatus
from tests.integration.api.conftest import Server, front_door
from tests.support.api_fakes import HOLD_IMAGE, FakeCluster
from tests.support.waiting import wait_until, wait_until_async

MIB = 2**20
BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
PART_HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="src"; filename="big.bin"\r\n\r\n'.encode()


async def _open_upload(server: Server, *, length: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = "/session/sess/upload"
    headers = server.headers("POST", target, "multipart/form-data")
    headers |= {"Host": server.host, "Content-Type": MULTIPART}
    headers |= {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    return reader, writer


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_two_gib_where_one_is_the_limit(server: Server, session: str) -> None:
    """Refused while it streams, without a length to tell before; nothing stays at the agent, nor in memory."""
    agent = server.cluster.agent
    agent.keep_uploads = False
    before = _resident_bytes()
    reader, writer = await _open_upload(server, length=None)
    answer = asyncio.create_task(reader.readuntil(b"\r\n"))
    writer.write(_chunk(PART_HEAD))
    block = _chunk(bytes(MIB))
    sent = 0
    while sent < 2048 and not answer.done():
        writer.write(block)
        await writer.drain()
        sent += 1
    assert b" 413 " in await answer
    assert 1024 <= sent < 1200
    assert agent.aborted == ["big.bin"]
    assert not agent.partial_bytes
    assert _resident_bytes() - before < 200 * MIB
    writer.close()


async def test_a_length_beyond_the_limit_is_refused_before_the_body(server: Server, session: str) -> None:
    reader, writer = await _open_upload(server, length=2 * 1024 * MIB)
    assert b" 413 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    writer.close()


async def test_a_client_that_hangs_up_half_way(server: Server, session: str) -> None:
    agent = server.cluster.agent
    _, writer = await _open_upload(server, length=100 * MIB)
    writer.write(PART_HEAD + bytes(9 * MIB))
    await writer.drain()
    await wait_until_async(lambda: _has_partial(server))
    writer.transport.abort()
    await wait_until_async(lambda: _has_aborted(server))
    assert not agent.partial
    assert not list(agent.folder.iterdir())


async def _has_partial(server: Server) -> bool:
    return "big.bin" in server.cluster.agent.partial


async def _has_aborted(server: Server) -> bool:
    return server.cluster.agent.aborted == ["big.bin"]


async def test_a_large_file_goes_up_and_down(server: Server, session: str, client: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * (32 * MIB // 256)
    response = await client.post("/session/sess/upload", files=[("src", ("big.bin", content))])
    assert response.status_code == 204
    response = await client.get("/session/sess/download_single?file=big.bin")
    assert response.content == content


async def test_a_download_that_breaks_does_not_look_whole(
    server: Server, session: str, client: httpx.AsyncClient
) -> None:
    (server.cluster.agent.folder / "f").write_bytes(bytes(20 * MIB))
    seen = 0

    async def read() -> None:
        nonlocal seen
        async with client.stream("GET", "/session/sess/download_single?file=f") as response:
            async for chunk in response.aiter_raw():
                if not seen:
                    server.cluster.fail_next("agent.read_download", ConnectionError("gone"))
                seen += len(chunk)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert seen < 20 * MIB
    await wait_until_async(lambda: _no_transfers(server))


async def test_a_client_that_leaves_a_download(server: Server, session: str, client: httpx.AsyncClient) -> None:
    (server.cluster.agent.folder / "f").write_bytes(bytes(64 * MIB))
    async with client.stream("GET", "/session/sess/download_single?file=f") as response:
        await anext(response.aiter_raw())
    await wait_until_async(lambda: _no_transfers(server))


async def _no_transfers(server: Server) -> bool:
    return not server.cluster.agent.transfers


async def test_much_output_in_few_answers(
    server: Server, session: str, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen polls of four MiB carry 64 MiB; the text arrives as it was."""
    text = "0123456789abcde\n" * (4 * MIB // 16)
    polls = 0

    async def execute(request: object) -> RunOutput:
        nonlocal polls
        polls += 1
        status = RunStatus.FINISHED if polls == 16 else RunStatus.CONTINUED
        return RunOutput("r", status, (("stdout", text),), polls, 0 if polls == 16 else None)

    monkeypatch.setattr(server.cluster.agent, "execute", execute)
    received = 0
    while True:
        answer = await client.post("/session/sess", json={"mode": "query", "code": "x", "runId": "r"})
        result = answer.json()["result"]
        received += len(result["console"][0][1])
        if result["status"] == "finished":
            break
    assert received == 64 * MIB


# ── events over a live connection ──


async def _next_event(lines: object) -> str:
    async for line in lines:  # type: ignore[attr-defined]
        if line.startswith("event: "):
            return str(line.removeprefix("event: "))
    raise AssertionError("the stream ended")


async def test_events_come_as_they_happen(server: Server, client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/events/session?sessionName=*&scope=session") as response:
        lines = response.aiter_lines()
        await anext(lines)
        await client.post("/session", json={"image": "python", "name": "live"})
        assert [await _next_event(lines) for _ in range(3)] == [
            "session_scheduled",
            "session_preparing",
            "session_started",
        ]


async def test_a_bus_that_is_away_when_a_stream_begins(server: Server, client: httpx.AsyncClient) -> None:
    """The stream stays open; once the bus is back it tells what happened since it was opened, and nothing older."""
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "old", "enqueueOnly": True})
    await client.delete("/session/old")
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    server.cluster.fail_next("events.ends", BusUnavailable())
    server.cluster.fail_next("events.tail", BusUnavailable(), times=3)
    async with client.stream("GET", "/events/session?scope=session") as response:
        lines = response.aiter_lines()
        await anext(lines)
        await client.delete("/session/waits")
        assert await _next_event(lines) == "session_cancelled"


# ── the server's own life ──


async def test_what_is_under_way_ends_in_good_order(settings: Settings, cluster: FakeCluster) -> None:
    door = front_door(settings, cluster)
    await door.start()
    address = await door.address()
    assert await door.ping()
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        assert (await client.get("/health/livez")).status_code == 200
        await door.stop()
        with pytest.raises(httpx.ConnectError):
            await client.get("/health/livez")


SERVE = """
import asyncio, pathlib, sys
from backendai_ray.config import load_settings
from tests.integration.api.conftest import front_door
from tests.support.api_fakes import FakeCluster

async def main():
    folder = pathlib.Path(sys.argv[2])
    door = front_door(load_settings(data_dir=folder), FakeCluster(folder), int(sys.argv[1]))
    await door.start()
    print(await door.address(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _serve(port: int, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port), str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.strip() == f"http://127.0.0.1:{port}" for line in lines), "the front door did not start"
    return process


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.kill
def test_after_kill_9_the_same_port_serves_again(tmp_path: Path) -> None:
    port = _free_port()
    process = _serve(port, tmp_path)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/health/livez").status_code == 200  # the connection stays open across the kill
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            process = _serve(port, tmp_path)
            wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/health/livez", trust_env=False).is_success)
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


async def test_a_port_that_is_freed_soon_is_waited_for(settings: Settings, cluster: FakeCluster) -> None:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.listen()
    door = front_door(settings, cluster, holder.getsockname()[1])
    asyncio.get_running_loop().call_later(0.3, holder.close)
    await door.start()
    await door.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            *subject,
            "-keyout",
            key,
            "-out",
            cert,
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def _with_tls(settings: Settings, cert: Path | None, key: Path | None) -> Settings:
    return settings.model_copy(update={"api": settings.api.model_copy(update={"tls_cert": cert, "tls_key": key})})


async def test_tls(settings: Settings, cluster: FakeCluster, certificate: tuple[Path, Path]) -> None:
    door = front_door(_with_tls(settings, *certificate), cluster)
    await door.start()
    address = await door.address()
    assert address.startswith("https://")
    trusted = ssl.create_default_context(cafile=certificate[0])
    async with httpx.AsyncClient(base_url=address, verify=trusted, trust_env=False) as client:
        assert (await client.get("/")).json()["version"].startswith("v7")
    await door.stop()


async def test_half_of_the_tls_settings(
    settings: Settings, cluster: FakeCluster, certificate: tuple[Path, Path]
) -> None:
    with pytest.raises(InvalidParameter, match="belong together"):
        await front_door(_with_tls(settings, certificate[0], None), cluster).start()


async def test_garbage_instead_of_http(server: Server) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(garbage)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer == b"" or b" 400 " in answer
        writer.close()


async def test_json_answers_name_no_server(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert "server" not in response.headers
    assert json.loads(response.text)

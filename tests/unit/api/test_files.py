"""Files: paths, limits, and what is left after a failure."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from email import message_from_bytes
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from backendai_ray.core.errors import AgentUnavailable, StoreUnavailable
from tests.support.api_fakes import FakeCluster

BOUNDARY = "frontier"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def _files(**contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("src", (name, content)) for name, content in contents.items()]


def _part(filename: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="src"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def test_upload_lists_and_downloads(client: httpx.AsyncClient, session: str, cluster: FakeCluster) -> None:
    names = {"plain.txt": b"1", quote("deep/er/ä %.txt", safe=""): b"2", quote("한글"): b"3" * 5000}
    response = await client.post(f"/session/{session}/upload", files=_files(**names))
    assert response.status_code == 204, response.text
    assert (cluster.agent.folder / "deep/er/ä %.txt").read_bytes() == b"2"
    assert (cluster.agent.folder / "한글").stat().st_size == 5000
    by_query = (await client.get(f"/session/{session}/files?path=deep")).json()
    assert [entry["filename"] for entry in by_query["entries"]] == ["er"]
    by_body = (await client.request("GET", f"/session/{session}/files", json={"path": "."})).json()
    assert [entry["filename"] for entry in json.loads(by_body["files"])] == ["deep", "plain.txt", "한글"]
    assert by_body["errors"] == ""
    absolute = (await client.get(f"/session/{session}/files?path=/home/work/deep")).json()
    assert absolute["abspath"] == "/home/work/deep"


async def test_download_as_the_official_client_reads_it(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    (cluster.agent.folder / "a").write_text("A")
    (cluster.agent.folder / "b").write_text("B")
    asked = [
        client.build_request("GET", f"/session/{session}/download", json={"files": ["a", "b"]}),
        client.build_request("GET", f"/session/{session}/download?files=a&files=b"),
    ]
    for request in asked:
        response = await client.send(request)
        assert response.status_code == 200
        assert int(response.headers["content-length"]) == len(response.content)
        message = message_from_bytes(
            b"Content-Type: " + response.headers["content-type"].encode() + b"\r\n\r\n" + response.content
        )
        parts: Any = message.get_payload()
        assert len(parts) == 1
        with tarfile.open(fileobj=io.BytesIO(parts[0].get_payload(decode=True))) as tar:
            assert tar.getnames() == ["a", "b"]
    assert not cluster.agent.transfers


async def test_download_of_one_file_as_it_is(client: httpx.AsyncClient, session: str, cluster: FakeCluster) -> None:
    content = bytes(range(256)) * 40_000
    (cluster.agent.folder / "ä.bin").write_bytes(content)
    response = await client.get(f"/session/{session}/download_single", params={"file": "ä.bin"})
    assert response.content == content
    assert response.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%A4.bin"
    by_body = await client.request("GET", f"/session/{session}/download_single", json={"file": "ä.bin"})
    assert by_body.content == content
    assert not cluster.agent.transfers


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "/home/work/../x"])
async def test_paths_that_climb_out(client: httpx.AsyncClient, session: str, cluster: FakeCluster, path: str) -> None:
    responses = [
        await client.post(f"/session/{session}/upload", files=_files(**{quote(path, safe=""): b"x"})),
        await client.get(f"/session/{session}/files", params={"path": path}),
        await client.get(f"/session/{session}/download", params={"files": path}),
        await client.get(f"/session/{session}/download_single", params={"file": path}),
    ]
    for response in responses:
        assert (response.status_code, response.json()["code"]) == (400, "path-outside-session")
    assert not list(cluster.agent.folder.iterdir())


async def test_requests_without_sense(client: httpx.AsyncClient, session: str) -> None:
    cases = [
        (client.get(f"/session/{session}/download"), "files"),
        (client.get(f"/session/{session}/download_single"), "file"),
        (client.get(f"/session/{session}/download", params={"files": ["x"] * 1001}), "files"),
        (client.get(f"/session/{session}/files", params={"path": "a\0b"}), "path"),
        (client.request("GET", f"/session/{session}/files", json={"paht": "."}), "paht"),
    ]
    for asking, field in cases:
        response = await asking
        assert (response.status_code, response.json()["details"]["field"]) == (400, field)
    missing = await client.get(f"/session/{session}/download?files=nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "file-missing")


async def test_a_body_that_is_too_large_leaves_nothing(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield _part("small.txt", b"1")
        yield _part("large.bin", b"")[:-2]
        for _ in range(100):
            yield b"x" * 65_536

    for content in (endless(), _part("large.bin", b"x" * (1024 * 1024 + 1)) + END):
        response = await client.post(f"/session/{session}/upload", content=content, headers=HEADERS)
        assert (response.status_code, response.json()["code"]) == (413, "too-large")
    assert not list(cluster.agent.folder.iterdir())
    assert not cluster.agent.partial
    announced = {**HEADERS, "Content-Length": str(2**31)}
    response = await client.post(f"/session/{session}/upload", content=b"", headers=announced)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no multipart at all",
        END,
        _part("a", b"x"),
        _part("a", b"x")[:-4],
        _part("a", b"x") + _part("a", b"y") + END,
        _part("", b"x") + END,
        _part("folder%2F", b"x") + END,
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="src"\r\n\r\nx\r\n'.encode() + END,
        f"--{BOUNDARY}\r\nX: {'y' * 20_000}\r\n\r\nx\r\n".encode() + END,
        _part("%FF%FE", b"x") + END,
    ],
    ids=[
        "empty",
        "text",
        "no-parts",
        "unclosed",
        "cut",
        "twice",
        "no-name",
        "folder",
        "no-file",
        "huge-header",
        "no-utf8",
    ],
)
async def test_broken_uploads_leave_nothing(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster, content: bytes
) -> None:
    response = await client.post(f"/session/{session}/upload", content=content, headers=HEADERS)
    assert response.status_code == 400, response.text
    assert not list(cluster.agent.folder.iterdir())
    assert not cluster.agent.partial


async def test_an_upload_of_another_type(client: httpx.AsyncClient, session: str) -> None:
    for content_type in ("application/json", "multipart/form-data", f"multipart/mixed; boundary={BOUNDARY}"):
        response = await client.post(
            f"/session/{session}/upload", content=b"{}", headers={"Content-Type": content_type}
        )
        assert (response.status_code, response.json()["code"]) == (400, "bad-request")


async def test_an_agent_that_restarts_during_an_upload(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    cluster.fail_next("agent.write_file", AgentUnavailable("restarting"), times=2)
    response = await client.post(f"/session/{session}/upload", files=_files(f=b"content"))
    assert response.status_code == 204
    assert (cluster.agent.folder / "f").read_bytes() == b"content"


async def test_a_full_disk_drops_the_rest(client: httpx.AsyncClient, session: str, cluster: FakeCluster) -> None:
    cluster.fail_next("agent.write_file", StoreUnavailable("no space left"))
    response = await client.post(f"/session/{session}/upload", files=_files(f=b"1", g=b"2"))
    assert response.status_code == 503
    assert cluster.agent.aborted == ["f", "g"] or cluster.agent.aborted == ["f"]
    assert not cluster.agent.partial


async def test_an_upload_to_a_session_that_is_not_there_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    reads = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal reads
        reads += 1
        yield b""

    response = await client.post("/session/nobody/upload", content=body(), headers=HEADERS)
    assert response.status_code == 404

"""The plain client: the same surface as the asynchronous one, from any thread and inside a running loop."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import backendai_ray
import backendai_ray.client
from backendai_ray.client import (
    AsyncClient,
    AsyncRun,
    AsyncSession,
    AsyncSessions,
    AsyncTerminal,
    Client,
    Run,
    Session,
    Sessions,
    Terminal,
)
from backendai_ray.core.errors import InvalidParameter, SessionNotFound
from tests.support.fake_server import ACCESS_KEY, ENDPOINT, SECRET_KEY, FakeServer

ONLY_INTERNAL = {"abandon_if_created"}


@pytest.mark.parametrize(
    ("plain", "behind"),
    [
        (Client, AsyncClient),
        (Sessions, AsyncSessions),
        (Session, AsyncSession),
        (Run, AsyncRun),
        (Terminal, AsyncTerminal),
    ],
)
def test_both_faces_have_the_same_methods(plain: type, behind: type) -> None:
    def public(cls: type) -> set[str]:
        return {n for n in dir(cls) if not n.startswith("_") and callable(getattr(cls, n))} - ONLY_INTERNAL

    assert public(plain) == public(behind)
    for name in public(plain):
        ours = list(inspect.signature(getattr(plain, name)).parameters)
        assert ours == list(inspect.signature(getattr(behind, name)).parameters), name
        assert getattr(plain, name).__doc__, f"{name} has no documentation"
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def test_a_day_in_plain_code(client: Client, server: FakeServer) -> None:
    with client.sessions.create("python", name="work") as session:
        assert session.run("1 + 1").stdout == "ran 1 + 1\n"
        assert [chunk.data for chunk in session.stream("x")] == ["ran x\n"]
        assert session.batch(exec="ls").stdout == "ran ls\n"
        run = session.stream("y")
        assert (run.result().stdout, run.exit_code, run.is_finished) == ("ran y\n", 0, True)
        session.write("a.txt", "a")
        assert session.read("a.txt") == b"a"
        assert [info.name for info in client.sessions.iterate()] == ["work"]
        assert client.sessions.get("work").info().is_running
    assert server.sessions[session.id].status == "TERMINATED"
    assert repr(session) == f"<session work {session.id}>"


async def test_it_works_where_a_loop_runs_already(client: Client) -> None:
    assert client.sessions.create("python").run("x").ok


def test_many_threads_share_a_client(client: Client, server: FakeServer) -> None:
    def work(n: int) -> str:
        with client.sessions.create("python", name=f"s{n}") as session:
            return session.run(str(n)).stdout

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(48))) == [f"ran {n}\n" for n in range(48)]
    assert {s.status for s in server.sessions.values()} == {"TERMINATED"}


def test_its_thread_ends_with_it(server: FakeServer) -> None:
    with Client(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire) as client:
        client.hello()
        assert any(t.name == "backendai-client" for t in threading.enumerate())
    assert not any(t.name == "backendai-client" for t in threading.enumerate())


def test_a_callback_that_waits_for_its_own_client_is_told(client: Client, server: FakeServer) -> None:
    with pytest.raises(RuntimeError, match="progress callback"):
        client.sessions.create("python", on_progress=lambda info: client.hello())


def test_errors_come_through(client: Client) -> None:
    with pytest.raises(SessionNotFound):
        client.sessions.get("nosuch")


@pytest.mark.parametrize("missing", ["BACKEND_ENDPOINT", "BACKEND_ACCESS_KEY", "BACKEND_SECRET_KEY"])
def test_a_missing_setting_says_what_to_do(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in {"ENDPOINT": ENDPOINT, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY}.items():
        monkeypatch.setenv(f"BACKEND_{name}", value)
    assert Client().config.endpoint == ENDPOINT
    monkeypatch.delenv(missing)
    with pytest.raises(InvalidParameter, match=rf"{missing} not set.*bai env") as caught:
        Client()
    assert caught.value.details["field"] == missing


def test_the_secret_key_is_never_shown() -> None:
    with Client(ENDPOINT, ACCESS_KEY, "very-secret") as client:
        assert "very-secret" not in repr(client.config)


@pytest.mark.parametrize("endpoint", ["localhost:8090", "ftp://x", "http://"])
def test_an_endpoint_must_be_a_url(endpoint: str) -> None:
    with pytest.raises(InvalidParameter, match="BACKEND_ENDPOINT"):
        Client(endpoint, ACCESS_KEY, SECRET_KEY)


HEAVY = {"ray", "fastapi", "numpy", "docker", "sqlalchemy", "msgspec", "redis", "uvicorn", "actors", "policies"}


def test_the_client_imports_light() -> None:
    """Neither the cluster's libraries nor, before it is needed, an HTTP or WebSocket library."""
    program = "import sys; from backendai_ray import AsyncClient, Client; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & (HEAVY | {"httpx", "websockets", "rich", "click"}) == set()
    use = "import sys, backendai_ray; backendai_ray.Client('http://x', 'a', 'b').close(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, check=True).stdout.split())
    assert loaded & (HEAVY | {"websockets"}) == set()


def test_the_package_exports_what_it_says() -> None:
    assert backendai_ray.Client is Client
    assert {"Client", "AsyncClient"} <= set(dir(backendai_ray))
    with pytest.raises(AttributeError):
        _ = backendai_ray.nosuch
    source = Path(backendai_ray.client.__file__).read_text()
    imported = {
        alias.name for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(imported) == sorted(backendai_ray.client.__all__)

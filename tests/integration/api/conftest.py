"""A front door on a real port, over fake peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect

from actors.contracts import Keypair
from actors.front_door import FrontDoor
from backendai_ray.config import Settings, load_settings
from tests.support.api_fakes import USER, FakeCluster
from tests.support.signing import SignedAuth, signed_headers


@dataclass
class Server:
    """A running front door, and ways to talk to it."""

    url: str
    cluster: FakeCluster
    settings: Settings

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def headers(self, method: str, target: str, content_type: str = "application/octet-stream") -> dict[str, str]:
        return signed_headers(USER, method=method, target=target, host=self.host, content_type=content_type)

    @asynccontextmanager
    async def websocket(self, target: str) -> AsyncIterator[ClientConnection]:
        async with connect(
            self.url.replace("http", "ws") + target, additional_headers=self.headers("GET", target), proxy=None
        ) as socket:
            yield socket


def front_door(settings: Settings, cluster: FakeCluster, port: int = 0) -> FrontDoor:
    """Return a front door over fakes, not yet started."""
    services = cluster.services()
    return FrontDoor(
        settings,
        port=port,
        bus_url="",
        manager=services.manager,
        connect_agent=services.agent,
        sokovan=services.sokovan,
        events=services.events,
    )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Print no logs: rendering them, with the locals of a failed upload, takes longer than the tests."""
    with capture_logs():
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    folder = tmp_path / "work"
    folder.mkdir()
    return FakeCluster(folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path)


@pytest.fixture
async def server(cluster: FakeCluster, settings: Settings) -> AsyncIterator[Server]:
    door = front_door(settings, cluster)
    await door.start()
    yield Server(await door.address(), cluster, settings)
    await door.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with new_client(server, USER) as client:
        yield client


def new_client(server: Server, keypair: Keypair) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, auth=SignedAuth(keypair), trust_env=False, timeout=30)


@pytest.fixture
async def session(client: httpx.AsyncClient) -> str:
    response = await client.post("/session", json={"image": "python", "name": "sess"})
    assert response.status_code == 201
    return "sess"

"""A front door's application over fake peers, called in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from backendai_ray.api import create_app
from backendai_ray.config import Settings, load_settings
from tests.support.api_fakes import ADMIN, USER, FakeCluster
from tests.support.signing import SignedAuth

BASE_URL = "http://127.0.0.1:8090"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        data_dir=tmp_path, api={"max_json_bytes": 64 * 1024, "max_upload_bytes": 1024 * 1024, "create_wait_s": 0.2}
    )


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    folder = tmp_path / "work"
    folder.mkdir()
    return FakeCluster(folder)


@pytest.fixture
def app(cluster: FakeCluster, settings: Settings) -> FastAPI:
    return create_app(cluster.services(), settings)


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:
        yield client


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A signed client of an ordinary user."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, auth=SignedAuth(USER)) as client:
        yield client


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A signed client of an administrator."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, auth=SignedAuth(ADMIN)) as client:
        yield client


@pytest.fixture
async def session(client: httpx.AsyncClient) -> str:
    """The name of a running session."""
    response = await client.post("/session", json={"name": "sess", "image": "python"})
    assert response.status_code == 201, response.text
    return "sess"

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from backendai_ray.client import AsyncClient, Client
from tests.support.fake_server import ACCESS_KEY, ENDPOINT, SECRET_KEY, FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire) as client:
        yield client


@pytest.fixture
async def async_client(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire) as client:
        yield client

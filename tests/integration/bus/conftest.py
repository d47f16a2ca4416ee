"""The same tests against the embedded default's Valkey and against Debian's Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backendai_ray.bus import Bus, EventStream

from .servers import KINDS, OwnServer


@pytest.fixture(params=KINDS)
def bus_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty server, of each kind in turn; shared with other tests of the run."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def bus(bus_url: str) -> AsyncIterator[Bus]:
    async with Bus(bus_url) as connected:
        yield connected


@pytest.fixture
async def stream(bus: Bus) -> EventStream:
    """An event stream that belongs to the store ``one``."""
    events = EventStream(bus)
    await events.adopt("one")
    return events


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnServer]:
    """A server that the test may kill."""
    server = OwnServer(request.param, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_bus(own_server: OwnServer) -> AsyncIterator[Bus]:
    async with Bus(own_server.url, timeout_s=1.0) as connected:
        yield connected

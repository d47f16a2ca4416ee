"""Passwords and TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backendai_ray.bus import Bus, EventStream
from backendai_ray.core.errors import BusUnavailable

from .builders import events
from .servers import KINDS, OwnServer


@pytest.fixture(params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(request.param, tmp_path, "--requirepass", "sesame")
    server.start()
    yield server
    server.stop()


async def test_a_password(guarded: OwnServer) -> None:
    async with Bus(guarded.url.replace("redis://", "redis://:sesame@")) as bus:
        await bus.ping()
    for wrong in ("redis://", "redis://:simsala@"):
        async with Bus(guarded.url.replace("redis://", wrong)) as bus:
            with pytest.raises(BusUnavailable) as caught:
                await bus.ping()
            assert "simsala" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    paths = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*request, "-out", paths["cert"], "-keyout", paths["key"]], check=True, capture_output=True)
    return paths


async def test_tls(tmp_path: Path, certificate: dict[str, Path]) -> None:
    server = OwnServer("redis", tmp_path, tls=certificate)  # the wheel's Valkey is built without TLS
    server.start()
    try:
        async with Bus(server.url) as bus:
            stream = EventStream(bus)
            await stream.adopt("one")
            assert await stream.publish(events(1, 3)) == 3
        async with Bus(server.url.partition("?")[0]) as stranger:
            with pytest.raises(BusUnavailable, match="certificate"):
                await stranger.ping()
    finally:
        server.stop()

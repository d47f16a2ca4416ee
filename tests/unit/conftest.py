"""Unit tests use neither Ray nor Docker: whoever reaches for them here is told so at once."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def neither_ray_nor_docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make ``ray.init`` and a connection to the engine's socket fail."""
    yield from guard(monkeypatch)


def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the fixture does, in two steps: before the test and after it."""
    connect = socket.socket.connect

    def connect_but_not_to_docker(self: socket.socket, address: Any) -> None:
        if isinstance(address, str) and address.endswith("docker.sock"):
            pytest.fail("a unit test reached for the Docker engine; move it to tests/integration")
        connect(self, address)

    def no_ray(*_args: Any, **_kwargs: Any) -> None:
        pytest.fail("a unit test called ray.init; move it to tests/integration")

    monkeypatch.setattr(socket.socket, "connect", connect_but_not_to_docker)
    was_up = _ray_is_up()
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", no_ray)
    yield
    # A test that imported Ray only while it ran is caught afterwards. (In a run of all tests the integration
    # tests' cluster may be up before.)
    if _ray_is_up() and not was_up:
        pytest.fail("a unit test started Ray; move it to tests/integration")


def _ray_is_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())

"""A unit test that reaches for Docker or Ray fails, whichever client it uses."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from tests.unit import conftest


def test_the_docker_client_cannot_connect() -> None:
    with pytest.raises(pytest.fail.Exception, match="move it to tests/integration"):
        docker.DockerClient(base_url="unix:///var/run/docker.sock", version="auto").ping()


def test_other_sockets_still_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_ray_init_is_refused() -> None:
    ray: Any = SimpleNamespace(init=lambda: "a cluster", is_initialized=lambda: False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        next(conftest.guard(patch))
        with pytest.raises(pytest.fail.Exception, match="move it to tests/integration"):
            ray.init()


def test_ray_started_behind_the_guards_back_is_noticed() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "ray", raising=False)
        guard = conftest.guard(patch)
        next(guard)
        patch.setitem(sys.modules, "ray", SimpleNamespace(init=None, is_initialized=lambda: True))
        with pytest.raises(pytest.fail.Exception, match="started Ray"):
            next(guard)

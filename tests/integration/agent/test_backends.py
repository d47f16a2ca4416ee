"""Both built-in backends keep the contract."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

import docker
import pytest

from actors.agent.backends.base import ComputeBackend
from actors.agent.backends.box.cgroups import groups_named
from actors.agent.backends.docker import DockerBackend
from actors.agent.backends.process import ProcessBackend
from actors.agent.testing.backend_conformance import BackendConformance, Lives
from backendai_ray.config import Settings
from backendai_ray.core.ids import AgentId
from tests.support.requirements import missing

MakeBackend = Callable[[], ComputeBackend]


@pytest.mark.docker
class TestDocker(BackendConformance):
    @pytest.fixture
    def make_backend(self, settings: Settings, agent_id: AgentId, default_image: str) -> MakeBackend:
        return lambda: DockerBackend(settings, agent_id)

    async def test_gangs_network_goes_with_its_last_member(
        self, lives: Lives, docker_engine: docker.DockerClient
    ) -> None:
        session_id, hosts = str(uuid.uuid4()), ("main1", "sub1")
        main, sub = (lives.start(lives.prepare(session_id=session_id, hosts=hosts, host=host)) for host in hosts)
        name = f"backendai-ray-{session_id}"
        assert len(docker_engine.networks.list(names=[name])) == 1
        lives.end(main, gang=True)
        assert len(docker_engine.networks.list(names=[name])) == 1
        lives.end(sub, gang=True)
        assert docker_engine.networks.list(names=[name]) == []

    async def test_image_without_python(self, lives: Lives, no_python_image: str) -> None:
        lives.image = no_python_image
        launch = lives.start()
        assert launch.image.python == ""
        assert lives.backend.is_running(launch.life)


class TestProcess(BackendConformance):
    shares_network_with_host = True

    @pytest.fixture
    def make_backend(self, settings: Settings, agent_id: AgentId) -> MakeBackend:
        if os.geteuid() != 0:
            missing("the process backend can only isolate kernels fully as root")
        return lambda: ProcessBackend(settings, agent_id)

    async def test_control_groups_go_with_the_kernel(self, lives: Lives) -> None:
        launch = lives.start()
        assert groups_named([str(launch.life)])
        lives.end(launch)
        assert groups_named([str(launch.life)]) == []

"""What is in the default image that is made here."""

from __future__ import annotations

import docker
import pytest

pytestmark = pytest.mark.docker

LOOK = "import json, os; print(os.path.exists(json.__cached__))"


def test_the_library_comes_compiled(docker_engine: docker.DockerClient, default_image: str) -> None:
    """Who runs in a container may not write bytecode, so each start would compile what it imports."""
    said = docker_engine.containers.run(
        default_image, ["python3", "-c", LOOK], user="1000", network_mode="none", remove=True
    )
    assert said.strip() == b"True"

"""The Docker engine and the images tests need."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException

from backendai_ray.core.errors import BackendError
from backendai_ray.images import ensure_default_image
from tests.support import images
from tests.support.requirements import missing


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the default image before the first test: its minute must not count against one test's time limit."""
    if session.config.option.collectonly or not any("default_image" in _fixtures_of(item) for item in session.items):
        return
    try:
        with closing(docker.from_env(timeout=60)) as client, _one_at_a_time():
            ensure_default_image(client, progress=print)
    except (DockerException, BackendError):
        return  # the fixture says so, to the tests that need it


def _fixtures_of(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold other processes of this test run off: each image is made once."""
    with (Path(tempfile.gettempdir()) / "backendai-ray-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    """A client of the real engine."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException:
        missing("no Docker engine answers")
    with closing(client):
        yield client


@pytest.fixture(scope="session")
def default_image(docker_engine: docker.DockerClient) -> str:
    """The cluster's default Python image."""
    with _one_at_a_time():
        return ensure_default_image(docker_engine)


@pytest.fixture(scope="session")
def no_python_image(docker_engine: docker.DockerClient) -> str:
    """An image with a shell and the usual tools but without Python and without bash."""
    with _one_at_a_time():
        return images.ensure_no_python_image(docker_engine)


@pytest.fixture(scope="session")
def r_image(docker_engine: docker.DockerClient, default_image: str) -> str:
    """The default image with R and its Jupyter kernel."""
    return images.ensure_r_image(docker_engine, default_image)


@pytest.fixture(scope="session")
def exits_at_once_image(docker_engine: docker.DockerClient) -> str:
    """An image whose entrypoint ends at once, whatever command it is given; it has no Python either."""
    with _one_at_a_time():
        return images.ensure_exits_at_once_image(docker_engine)

"""Real clusters for tests: the daemon behind ``bai up``, one per backend and test run, each on its own data folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from docker.errors import DockerException

from backendai_ray.config import load_settings
from backendai_ray.local_cluster import LocalCluster
from tests.support.ray_cluster import RAY_SETTINGS
from tests.support.requirements import missing

if TYPE_CHECKING:
    from backendai_ray.client import Client

CPU_OVERCOMMIT = 4.0
"""Test machines have two cores; with this, each cluster gives out eight."""


class Clusters:
    """Starts a cluster per backend when it is first asked for, and ends all at the end of the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, LocalCluster] = {}

    def get(self, backend: str) -> LocalCluster:
        """Return the run's cluster of that backend."""
        if backend not in self._running:
            self._running[backend] = start_cluster(self._folder / backend, backend)
        return self._running[backend]

    def stop(self) -> None:
        """End them all."""
        for cluster in self._running.values():
            cluster.stop()


def start_cluster(data_dir: Path, backend: str) -> LocalCluster:
    """Start a cluster for tests: deadlines of seconds, many small sessions."""
    settings = load_settings(
        data_dir=data_dir,
        api={"port": 0},
        agent={
            "backend": backend,
            "node_id": f"test-{backend}",
            "cpu_overcommit": CPU_OVERCOMMIT,
            "reserved_mem": "0",
            "stop_grace_s": 1,
            "warm_pool": 0,  # what it makes would only take time from the tests; it has tests of its own
        },
        scheduler={"options": {"preemption": {"scope": "owner", "min_runtime_s": 0, "grace_s": 5}}},
        manager={"sweep_interval_s": 1, "agent_lost_after_s": 20, "terminating_timeout_s": 10},
    )
    tests_own = {name: os.environ.pop(name, None) for name in RAY_SETTINGS}
    try:
        return LocalCluster.start(settings)
    finally:
        os.environ.update({name: value for name, value in tests_own.items() if value is not None})


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """The run's clusters."""
    folder = Path(tempfile.mkdtemp(prefix="bai-test-", dir="/tmp"))
    running = Clusters(folder)
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def live_cluster(request: pytest.FixtureRequest, clusters: Clusters) -> LocalCluster:
    """A running cluster, once on each backend."""
    if request.param == "docker":
        _need_engine()
        request.getfixturevalue("default_image")
    return clusters.get(request.param)


@pytest.fixture(scope="session")
def live_endpoint(clusters: Clusters) -> Mapping[str, str]:
    """What ``bai env`` exports for a running cluster: containers where an engine answers, else processes."""
    try:
        docker.from_env(timeout=10).ping()
    except DockerException:
        return clusters.get("process").environment
    return clusters.get("docker").environment


@pytest.fixture
def live_client(live_cluster: LocalCluster) -> Iterator[Client]:
    """A client of the running cluster; sessions that a test leaves are ended."""
    with client_of(live_cluster) as client:
        before = {session.id for session in client.sessions.iterate()}
        yield client
        for session in client.sessions.iterate():
            if session.id not in before:
                client.sessions.get(session.id).destroy(forced=True)


def client_of(cluster: LocalCluster) -> Client:
    """Return a client with the admin's key."""
    from backendai_ray.client import Client

    return Client(endpoint=cluster.endpoint, access_key=cluster.access_key, secret_key=cluster.secret_key)


def _need_engine() -> None:
    try:
        docker.from_env(timeout=10).ping()
    except DockerException:
        missing("no Docker engine answers")

"""One Ray cluster per test run, truly on loopback, and a fresh namespace in it per test.

Starting Ray costs seconds, an actor in a running one a tenth of a second.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

# Ray reads some of these when it is imported and some when it starts, so they are set before either.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # said explicitly: its default depends on how Ray is started
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the only way to a cluster that listens on loopback alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_oom_score_adjustment": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
}
os.environ.update(RAY_SETTINGS)
_BEFORE_RAY = {name: value for name, value in os.environ.items() if name not in RAY_SETTINGS}


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where a test finds Ray."""

    address: str
    """``127.0.0.1:PORT`` of the cluster; this process is connected already."""
    namespace: str
    """Only this test's; actors named in it are killed when the test ends."""
    node_id: str
    """The id that Ray gave the one node."""


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The running cluster's address; this process stays connected to it until the end of the run."""
    import ray

    folder = tempfile.mkdtemp(prefix="br-ray-", dir="/tmp")  # short: Unix socket paths end at 107 bytes
    try:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=80_000_000,
            log_to_driver=False,
            configure_logging=False,
            namespace="tests",
            _temp_dir=folder,
        )
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_cluster(ray_address: str) -> Iterator[RayCluster]:
    """The run's cluster with a namespace for this test alone."""
    import ray

    namespace = f"test-{uuid.uuid4().hex[:12]}"
    yield RayCluster(ray_address, namespace, ray.get_runtime_context().get_node_id())
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == namespace:
            ray.kill(ray.get_actor(actor["name"], namespace))


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """An environment for a program under test: ours without the Ray settings that only this process should have."""
    return dict(_BEFORE_RAY)

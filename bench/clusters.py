"""A fresh cluster for one bench, gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backendai_ray.client import Client
from backendai_ray.config import load_settings
from backendai_ray.local_cluster import LocalCluster


@contextlib.contextmanager
def fresh_cluster(backend: str, **overrides: Any) -> Iterator[tuple[LocalCluster, Client]]:
    """Yield a cluster of that backend on a temporary data folder and a free port, and a client of it."""
    data_dir = Path(tempfile.mkdtemp(prefix="bai-bench-"))
    agent = {"backend": backend, **overrides.pop("agent", {})}
    settings = load_settings(data_dir=data_dir, api={"port": 0}, agent=agent, **overrides)
    try:
        with (
            LocalCluster.start(settings) as cluster,
            Client(endpoint=cluster.endpoint, access_key=cluster.access_key, secret_key=cluster.secret_key) as client,
        ):
            yield cluster, client
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)

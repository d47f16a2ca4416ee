"""From the create call to the first output: ours over HTTP against the same container through the Docker SDK."""

from __future__ import annotations

import argparse
import time
from typing import Any

import docker

from backendai_ray.client import Client
from backendai_ray.images import ensure_default_image
from bench.clusters import fresh_cluster
from bench.figures import Report

_PROGRAM = "print('hi')"
_RAW_COMMAND = ["python3", "-u", "-c", f"{_PROGRAM};import time;time.sleep(60)"]
_MEM = "256m"
_MEM_BYTES = 256 * 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--runs", type=int, default=15, help="starts of each kind")


def run(report: Report, options: argparse.Namespace) -> None:
    """Alternate our start and the raw one on Docker; then ours on the process backend."""
    engine = docker.from_env(version="auto")
    image = ensure_default_image(engine)
    ours, raw, parts = [], [], []
    with fresh_cluster("docker") as (_cluster, client):
        _our_start(client)
        _raw_start(engine.api, image)
        for _ in range(options.runs):
            total, created = _our_start(client)
            ours.append(total)
            parts.append(created)
            raw.append(_raw_start(engine.api, image))
    cold = report.add("session_start.docker.cold.ms", "ms", ours)
    report.add("session_start.docker.cold.running.ms", "ms", parts)
    report.ratio("session_start.docker.ratio", cold, report.add("session_start.docker.raw.ms", "ms", raw))
    with fresh_cluster("process") as (_cluster, client):
        _our_start(client)
        starts = [_our_start(client) for _ in range(options.runs)]
    report.add("session_start.process.cold.ms", "ms", [total for total, _ in starts])
    report.add("session_start.process.cold.running.ms", "ms", [created for _, created in starts])


def _our_start(client: Client) -> tuple[float, float]:
    """Return ms from the create call to the first output, and to the answer RUNNING."""
    began = time.perf_counter()
    session = client.sessions.create("python", cpu=1, mem=_MEM)
    running = time.perf_counter()
    try:
        first = next(iter(session.stream(_PROGRAM)))
        done = time.perf_counter()
        if "hi" not in str(first.data):
            raise RuntimeError(f"unexpected output: {first}")
    finally:
        session.destroy(forced=True)
        session.wait("TERMINATED", timeout=60)
    return 1e3 * (done - began), 1e3 * (running - began)


def _raw_start(api: Any, image: str) -> float:
    began = time.perf_counter()
    host_config = api.create_host_config(network_mode="bridge", mem_limit=_MEM_BYTES, memswap_limit=_MEM_BYTES)
    container = api.create_container(image, _RAW_COMMAND, host_config=host_config)["Id"]
    try:
        output = api.attach(container, stdout=True, stream=True)
        api.start(container)
        next(iter(output))
        return 1e3 * (time.perf_counter() - began)
    finally:
        api.remove_container(container, force=True, v=True)

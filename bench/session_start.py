"""From the create call to the first output: ours over HTTP against the same container through the Docker SDK."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
_SPARES = {"label": "backendai-ray.spare", "name": "^spare\\."}
_POOL_TIMEOUT_S = 60.0
_QUIET_S = 0.3
"""What the engine still does after a removal should not be in the next start."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--runs", type=int, default=15, help="rounds of each kind")
    parser.add_argument("--concurrency", type=int, default=1, help="starts at once in a round")
    parser.add_argument(
        "--pool", choices=("cold", "warm"), default="cold", help="warm: every start finds a container made ahead"
    )


def run(report: Report, options: argparse.Namespace) -> None:
    """Alternate our rounds and the raw ones on Docker; then, for single cold starts, ours on the process backend."""
    engine = docker.from_env(version="auto", max_pool_size=32)
    image = ensure_default_image(engine)
    at_once, warm = options.concurrency, options.pool == "warm"
    agent = {"warm_pool": at_once if warm else 0, "cpu_overcommit": 10, "create_concurrency": max(8, at_once)}
    ours, raw = _Rounds(at_once), _Rounds(at_once)
    with fresh_cluster("docker", agent=agent) as (_cluster, client):
        for number in range(options.runs + 1):  # the first is to warm up
            if warm and number:
                _wait_for_spares(engine, at_once)
            ours.add(lambda: _our_start(client), keep=number > 0)
            raw.add(lambda: _raw_start(engine.api, image), keep=number > 0)
    kind = f"session_start.docker.{options.pool}"
    mine = report.add(f"{kind}.ms", "ms", ours.first_output_ms)
    report.add(f"{kind}.running.ms", "ms", ours.running_ms)
    report.ratio(
        "session_start.docker.ratio", mine, report.add("session_start.docker.raw.ms", "ms", raw.first_output_ms)
    )
    rate = report.add(f"{kind}.per_s", "1/s", ours.per_s)
    report.ratio(
        "session_start.docker.per_s.ratio", rate, report.add("session_start.docker.raw.per_s", "1/s", raw.per_s)
    )
    if at_once == 1 and not warm:
        _process_backend(report, options.runs)


def _process_backend(report: Report, runs: int) -> None:
    with fresh_cluster("process") as (_cluster, client):
        rounds = _Rounds(1)
        for number in range(runs + 1):
            rounds.add(lambda: _our_start(client), keep=number > 0)
    report.add("session_start.process.cold.ms", "ms", rounds.first_output_ms)
    report.add("session_start.process.cold.running.ms", "ms", rounds.running_ms)


class _Rounds:
    """Starts in rounds of so many at once; each start returns when it began, ran, and printed, and how to end it."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self.first_output_ms: list[float] = []
        self.running_ms: list[float] = []
        self.per_s: list[float] = []

    def add(self, start: Callable[[], tuple[float, float, float, Callable[[], Any]]], *, keep: bool) -> None:
        """Run one round and end what it started."""
        with ThreadPoolExecutor(self._at_once) as threads:
            starts = [job.result() for job in [threads.submit(start) for _ in range(self._at_once)]]
            list(threads.map(lambda one: one[3](), starts))
        time.sleep(_QUIET_S)
        if keep:
            self.first_output_ms += [1e3 * (done - began) for began, _, done, _ in starts]
            self.running_ms += [1e3 * (running - began) for began, running, _, _ in starts]
            whole = max(done for _, _, done, _ in starts) - min(began for began, _, _, _ in starts)
            self.per_s.append(self._at_once / whole)


def _our_start(client: Client) -> tuple[float, float, float, Callable[[], Any]]:
    began = time.perf_counter()
    session = client.sessions.create("python", cpu=1, mem=_MEM)
    running = time.perf_counter()
    first = next(iter(session.stream(_PROGRAM)))
    done = time.perf_counter()
    if "hi" not in str(first.data):
        raise RuntimeError(f"unexpected output: {first}")

    def end() -> None:
        session.destroy(forced=True)
        session.wait("TERMINATED", timeout=60)

    return began, running, done, end


def _raw_start(api: Any, image: str) -> tuple[float, float, float, Callable[[], Any]]:
    began = time.perf_counter()
    host_config = api.create_host_config(network_mode="bridge", mem_limit=_MEM_BYTES, memswap_limit=_MEM_BYTES)
    container = api.create_container(image, _RAW_COMMAND, host_config=host_config)["Id"]
    output = api.attach(container, stdout=True, stream=True)
    api.start(container)
    running = time.perf_counter()
    next(iter(output))
    done = time.perf_counter()
    return began, running, done, lambda: api.remove_container(container, force=True, v=True)


def _wait_for_spares(engine: Any, count: int) -> None:
    deadline = time.monotonic() + _POOL_TIMEOUT_S
    while len(engine.containers.list(filters=_SPARES)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the agent has not made {count} containers ahead within {_POOL_TIMEOUT_S:g} s")
        time.sleep(0.1)
    time.sleep(_QUIET_S)

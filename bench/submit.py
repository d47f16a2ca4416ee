"""What the control plane adds to a start, and how many no-op batch sessions end per second."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backendai_ray.client import Client
from bench.clusters import fresh_cluster
from bench.figures import Report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--starts", type=int, default=30, help="starts whose control-plane part is measured")
    parser.add_argument("--batch", type=int, default=500, help="no-op batch sessions")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of batch sessions")


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure the control plane on an idle cluster, then the throughput of batch sessions."""
    agent = {"reserved_mem": "0", "cpu_overcommit": 4.0}
    with fresh_cluster("process", agent=agent) as (cluster, client):
        delays = _control_plane(client, cluster.settings.data_dir / "logs", options.starts)
        report.add("submit.control_plane.ms", "ms", delays)
        rates = [_batch(client, options.batch) for _ in range(options.rounds)]
    report.add("submit.batch.done_per_s", "sessions/s", rates)


def _control_plane(client: Client, logs: Path, starts: int) -> list[float]:
    """Return ms from the front door's receipt of each POST to the agent's call of the backend's create."""
    ids = []
    for _ in range(starts):
        session = client.sessions.create("python", cpu=1, mem="128m")
        ids.append(session.id)
        session.destroy(forced=True)
        session.wait("TERMINATED", timeout=60)
    received = _moments(logs, "session.submitted", "received_at")
    called = _moments(logs, "kernel.launched", "called_at")
    return [1e3 * (called[one] - received[one]) for one in ids[2:]]


def _moments(logs: Path, event: str, field: str) -> dict[str, float]:
    """Return session id → the Unix time that the first log line of that event carries."""
    found: dict[str, float] = {}
    for path in logs.glob("*.log"):
        for line in path.read_text().splitlines():
            if event in line:
                record = json.loads(line)
                found.setdefault(record.get("session_id", ""), record.get(field, 0.0))
    return found


def _batch(client: Client, count: int) -> float:
    began = time.perf_counter()

    def submit(_: int) -> str:
        session = client.sessions.create(
            "python", cpu="0.5", mem="64m", type="batch", startup_command="true", wait=False
        )
        return str(session.id)

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(submit, range(count)))
    for one in ids:
        session = client.sessions.get(one)
        session.wait("TERMINATED", timeout=600)
        if session.info().result != "success":
            raise RuntimeError(f"{one}: {session.info()}")
    return count / (time.perf_counter() - began)

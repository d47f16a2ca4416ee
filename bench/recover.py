"""Kill an actor with sessions running: how long until it serves again, and what was lost or leaked."""

from __future__ import annotations

import argparse
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from backendai_ray.client import Client
from backendai_ray.core.errors import BackendError
from bench.clusters import fresh_cluster
from bench.figures import Report
from bench.processes import actor_processes

_LIMIT_S = 60.0
_POLL_S = 0.02


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--sessions", type=int, default=1000, help="sessions that run while actors are killed")
    parser.add_argument("--backend", default="sim", help="what they run in; with process or docker take fewer")
    parser.add_argument("--rounds", type=int, default=5, help="kills of each actor")


def run(report: Report, options: argparse.Namespace) -> None:
    """Fill a cluster, kill Manager, Sokovan and agent in turn, and count."""
    agent = {"cpu_overcommit": 10.0, "mem_overcommit": 10.0, "reserved_mem": "0"}
    slots = {"cpu": "0.01", "mem": "1m"}
    with fresh_cluster(options.backend, agent=agent) as (cluster, client):
        wanted = _fill(client, options.sessions, slots)
        for actor, figure in (
            ("ManagerActor", "recover.manager.s"),
            ("SokovanActor", "recover.sokovan.s"),
            ("AgentActor", "recover.agent.s"),
        ):
            report.add(
                figure,
                "s",
                [_kill_and_schedule(cluster.state.pid, client, actor, slots) for _ in range(options.rounds)],
            )
        still = {s.id for s in client.sessions.iterate(statuses=["RUNNING"])}
        report.add("recover.sessions", "sessions", len(wanted))
        report.add("recover.lost", "sessions", len(wanted - still))
        _empty(client, still)
        occupied = [node.occupied for node in client.agents()]
        report.add("recover.leaked", "slots", sum(1 for node in occupied for amount in node.values() if float(amount)))


def _fill(client: Client, count: int, slots: dict[str, str]) -> set[str]:
    def start(_: int) -> str:
        return str(client.sessions.create("python", resources=slots, wait=False).id)

    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(start, range(count)))
    for one in ids:
        client.sessions.get(one).wait("RUNNING", timeout=600)
    return ids


def _kill_and_schedule(daemon: int, client: Client, actor: str, slots: dict[str, str]) -> float:
    """Return seconds from the kill until a session that is submitted after it runs."""
    victim = next(pid for pid, name in actor_processes(daemon).items() if name == actor)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while time.monotonic() - began < _LIMIT_S:
        try:
            session = client.sessions.create("python", resources=slots, timeout=_LIMIT_S)
        except BackendError:
            time.sleep(_POLL_S)
            continue
        took = time.monotonic() - began
        session.destroy(forced=True)
        session.wait("TERMINATED", timeout=_LIMIT_S)
        return took
    raise RuntimeError(f"{actor} did not serve again within {_LIMIT_S:g} s")


def _empty(client: Client, ids: set[str]) -> None:
    for one in ids:
        client.sessions.get(one).destroy(forced=True)
    for one in ids:
        client.sessions.get(one).wait("TERMINATED", timeout=_LIMIT_S)

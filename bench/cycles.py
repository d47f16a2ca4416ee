"""Sessions made and ended over and over while the agent is killed at random moments: what is left of them, by kind."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import docker

from actors.agent.journal import KernelRecord
from backendai_ray import records
from backendai_ray.client import Client, Session
from backendai_ray.core.errors import BackendError
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, total
from backendai_ray.local_cluster import LocalCluster
from bench.clusters import fresh_cluster
from bench.figures import Report
from bench.leftovers import KINDS, Holding, Node, descriptors_and_threads
from bench.processes import actor_processes

_LIMIT_S = 90.0
_GONE_IN_S = 30.0
_MEM = 128 * 2**20
_QUIET_CYCLES = 9
"""At the end, without kills, to see whether the actors themselves leak."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--cycles", type=int, default=40, help="per backend; each makes and ends four kernels")
    parser.add_argument("--seconds", type=float, default=0.0, help="end a backend's cycles after so long; 0: never")
    parser.add_argument("--backend", action="append", help="docker or process; may be repeated; default: both")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which the agent is killed")


def run(report: Report, options: argparse.Namespace) -> None:
    """Run the cycles on each backend and record what was leaked."""
    counts = _Counts()
    for backend in options.backend or ["docker", "process"]:
        agent = {"cpu_overcommit": 10.0, "reserved_mem": "0", "stop_grace_s": 1.0, "warm_pool": 2}
        manager = {"sweep_interval_s": 1, "agent_lost_after_s": 60, "terminating_timeout_s": 5}
        with fresh_cluster(backend, agent=agent, manager=manager) as (cluster, client):
            engine = docker.APIClient(version="auto", timeout=60) if backend == "docker" else None
            cycles = _Cycles(cluster, client, Node(cluster.settings.sessions_dir, engine), counts, backend)
            cycles.run(options.cycles, options.seconds, options.seed)
    report.add("cycles.n", "cycles", counts.cycles)
    report.add("cycles.kernels", "kernels", counts.kernels)
    report.add("cycles.kills", "kills", counts.kills)
    report.add("cycles.failed", "sessions", counts.failed)
    report.add("cycles.map.wrong", "cycles", counts.wrong_maps)
    for kind in (*KINDS, "descriptors", "threads"):
        report.add(f"cycles.leaked.{kind}", kind, counts.leaked[kind])
    report.add("cycles.leaked", "things", counts.leaked.total())


@dataclass(slots=True)
class _Counts:
    cycles: int = 0
    kernels: int = 0
    kills: int = 0
    failed: int = 0
    """Sessions that ended though nobody had ended them."""
    wrong_maps: int = 0
    leaked: Counter[str] = field(default_factory=Counter)


class _Cycles:
    """The cycles on one cluster."""

    def __init__(self, cluster: LocalCluster, client: Client, node: Node, counts: _Counts, backend: str) -> None:
        self._daemon = cluster.state.pid
        self._client = client
        self._node = node
        self._counts = counts
        self._backend = backend
        self._left: Counter[str] = Counter()

    def run(self, count: int, seconds: float, seed: int) -> None:
        """Run the cycles, then some without kills."""
        ends_at = time.monotonic() + (seconds or float("inf"))
        for number in range(count):
            if time.monotonic() > ends_at:
                break
            # A stream of its own for each cycle: one that is of interest can be had again by its number.
            self._cycle(number, random.Random(f"{seed}-{self._backend}-{number}"))
        samples = []
        for number in range(_QUIET_CYCLES):
            self._cycle(count + number, None)
            samples.append(descriptors_and_threads([self._daemon, *actor_processes(self._daemon)]))
        third = len(samples) // 3
        for kind in ("descriptors", "threads"):
            # Pools grow to their sizes in the first cycles; a leak goes on growing.
            rise = min(s[kind] for s in samples[-third:]) - max(s[kind] for s in samples[:third])
            self._note(kind, max(0, rise))
        self._counts.leaked += self._left

    def _cycle(self, number: int, moments: random.Random | None) -> None:
        """Make three sessions (one of them a gang) and end them, the agent being killed in between."""
        with ThreadPoolExecutor(4) as pool:
            making = [pool.submit(self._make, gang=n == 0, ports=n == 1) for n in range(3)]
            if moments is not None and moments.random() < 0.7:
                self._kill_after(moments.uniform(0.0, 0.8))
            sessions = [one.result() for one in making]
            statuses = [self._until_settled(session) for session in sessions]
            self._counts.failed += sum(status != "RUNNING" for status in statuses)
            kernels = [kernel.id for session in sessions for kernel in session.info().kernels]
            if not _within(_GONE_IN_S, self._is_map_true):
                self._counts.wrong_maps += 1
                print(f"cycles: {self._backend} {number}: {self._maps()}", file=sys.stderr, flush=True)
            for n, session in enumerate(sessions):
                pool.submit(session.destroy, forced=bool(n % 2 if moments is None else moments.random() < 0.5))
            if moments is not None and moments.random() < 0.5:
                self._kill_after(moments.uniform(0.0, 0.5))
        for session in sessions:
            session.wait("TERMINATED", timeout=_LIMIT_S)
        self._check_gone(number, [session.id for session in sessions], kernels)
        self._counts.cycles += 1
        self._counts.kernels += len(kernels)

    def _make(self, *, gang: bool, ports: bool) -> Session:
        size = 2 if gang else 1
        opened = (8080,) if ports and self._node.engine is not None else ()
        return self._client.sessions.create(
            "python", cpu=1, mem=str(_MEM), cluster_size=size, preopen_ports=opened, wait=False
        )

    def _kill_after(self, seconds: float) -> None:
        time.sleep(seconds)
        for pid, name in actor_processes(self._daemon).items():
            if name == "AgentActor":
                os.kill(pid, signal.SIGKILL)
                self._counts.kills += 1

    def _until_settled(self, session: Session) -> str:
        try:
            return session.wait("RUNNING", timeout=_LIMIT_S).status
        except BackendError as error:
            print(f"cycles: {self._backend}: {session.id} does not run: {error}", file=sys.stderr, flush=True)
            return session.info().status

    # ── what must hold ─────────────────────────────────────────────────────────────────────────────────────────────

    def _maps(self) -> tuple[dict[str, Holding], dict[str, Holding], ResourceSlots]:
        """Return what the engine holds the kernels to, what the agent has given out, and what the Manager has."""
        given: dict[str, Holding] = {}
        for path in self._node.sessions_dir.glob("*/kernel.json"):
            record = records.decode(path.read_bytes(), KernelRecord)
            if not record.has_ended:
                allocation = record.spec.allocation
                cores, memory = allocation.devices(CPU), allocation.devices(MEM)
                sum_of_cores = tuple(sorted(int(core) for core in cores))
                given[record.spec.kernel_id] = (sum_of_cores, sum(cores.values()), sum(memory.values()))
        occupied = total(ResourceSlots.parse(agent.occupied) for agent in self._client.agents())
        return self._node.holdings(), given, occupied

    def _is_map_true(self) -> bool:
        engine, agent, manager = self._maps()
        units = sum(units for _, units, _ in engine.values())
        memory = sum(size for _, _, size in engine.values())
        return engine == agent and (manager.amount(CPU), manager.amount(MEM)) == (units, memory)

    def _check_gone(self, number: int, session_ids: list[str], kernel_ids: list[str]) -> None:
        if not _within(_GONE_IN_S, self._is_map_true):
            self._counts.wrong_maps += 1
            print(f"cycles: {self._backend} {number}: after the end: {self._maps()}", file=sys.stderr, flush=True)
        left = Counter[str]()

        def is_clean() -> bool:
            nonlocal left
            # What an earlier cycle left is counted once.
            left = self._node.leftovers(session_ids, kernel_ids) - self._left
            return not left

        if not _within(_GONE_IN_S, is_clean):
            for kind, amount in left.items():
                self._note(kind, amount)

    def _note(self, kind: str, amount: int) -> None:
        if amount:
            print(f"cycles: {self._backend} leaked {amount} {kind}", file=sys.stderr, flush=True)
            self._left[kind] += amount


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return True
        except (OSError, BackendError, docker.errors.DockerException, records.DecodeError):
            pass  # what was looked at went away meanwhile
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)

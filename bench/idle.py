"""What an idle cluster costs, against Ray alone with as many empty actors."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

from bench.clusters import fresh_cluster
from bench.figures import Report
from bench.processes import actor_processes, cpu_percent, descendants, pss_mb

SETTLE_S = 10.0
_START_LIMIT_S = 240.0

_RAY_ALONE = """
import os, sys, time, tempfile, shutil
from backendai_ray.ray_env import apply_ray_environment
apply_ray_environment(loopback_only=True, token_file=None)
import ray
scratch = tempfile.mkdtemp(prefix="bai-ray-")
ray.init(address="local", include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False,
         logging_level="error", _temp_dir=scratch)
class Empty:
    async def ping(self): return 1
actors = [ray.remote(Empty).options(num_cpus=0).remote() for _ in range(int(sys.argv[1]))]
ray.get([a.ping.remote() for a in actors])
print("ready", flush=True)
sys.stdin.read()
ray.shutdown()
shutil.rmtree(scratch, ignore_errors=True)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long CPU use is watched, per sample")
    parser.add_argument(
        "--kernels", type=int, default=0, help="measure instead an agent with so many idle kernels of --backend"
    )
    parser.add_argument("--backend", default="docker", help="what those run in")
    parser.add_argument("--samples", type=int, default=3, help="samples per figure")


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure both and record the figures."""
    if options.kernels:
        _with_kernels(report, options)
        return
    with fresh_cluster("process") as (cluster, _client):
        time.sleep(SETTLE_S)
        actors = len(actor_processes(cluster.state.pid))
        ours = _sample(cluster.state.pid, options)
    rss = report.add("idle.rss.mb", "MB", [rss for rss, _ in ours])
    cpu = report.add("idle.cpu.pct", "%", [cpu for _, cpu in ours])
    report.add("idle.actors", "actors", actors)
    peer = subprocess.Popen(
        [sys.executable, "-c", _RAY_ALONE, str(actors)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert peer.stdout is not None
    peer.stdout.readline()
    time.sleep(SETTLE_S)
    alone = _sample(peer.pid, options)
    peer.communicate()
    report.ratio("idle.rss.ratio", rss, report.add("idle.ray.rss.mb", "MB", [rss for rss, _ in alone]))
    report.ratio("idle.cpu.ratio", cpu, report.add("idle.ray.cpu.pct", "%", [cpu for _, cpu in alone]))


def _with_kernels(report: Report, options: argparse.Namespace) -> None:
    """Measure the agent alone, with kernels that do nothing."""
    agent = {"cpu_overcommit": 10.0, "mem_overcommit": 10.0, "reserved_mem": "0", "warm_pool": 0}
    with fresh_cluster(options.backend, agent=agent) as (cluster, client):
        with ThreadPoolExecutor(8) as pool:
            sessions = [
                pool.submit(client.sessions.create, "python", cpu="0.01", mem="48m", shmem="1m", timeout=_START_LIMIT_S)
                for _ in range(options.kernels)
            ]
            wait(sessions)
        time.sleep(SETTLE_S)
        report.add("idle.agent.kernels", "kernels", sum(one.exception() is None for one in sessions))
        pid = next(pid for pid, name in actor_processes(cluster.state.pid).items() if name == "AgentActor")
        samples = []
        for _ in range(options.samples):
            cpu = cpu_percent({pid}, options.seconds)
            samples.append((pss_mb([pid]), cpu))
        report.add("idle.agent.rss.mb", "MB", [rss for rss, _ in samples])
        report.add("idle.agent.cpu.pct", "%", [cpu for _, cpu in samples])
        with ThreadPoolExecutor(8) as pool:
            for one in sessions:
                if one.exception() is None:
                    pool.submit(one.result().destroy, forced=True)
        for one in sessions:
            if one.exception() is None:
                one.result().wait("TERMINATED", timeout=_START_LIMIT_S)


def _sample(root: int, options: argparse.Namespace) -> list[tuple[float, float]]:
    samples = []
    for _ in range(options.samples):
        pids = descendants(root)
        cpu = cpu_percent(pids, options.seconds)
        samples.append((pss_mb(pids), cpu))
    return samples

"""Scheduling policies on a trace of the Philly format, in virtual time: who waits how long, and how fairly.

The cluster is alike nodes of 8 GPUs. Owners are the trace's virtual clusters. The trace has neither priorities nor time
limits: a job's limit is the time it really ran, times ``--limit-factor``. Each policy replays the same jobs once;
nothing is random.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from backendai_ray.core.errors import BackendError
from backendai_ray.plugins import load_policy
from bench.figures import Report
from policies.simulator.engine import Progress, simulate
from policies.simulator.jobs import Job
from policies.simulator.metrics import summarise
from policies.simulator.node_files import read_nodes
from policies.simulator.trace_files import read_trace

_POLICIES = ("fifo", "drf", "lifo", "backfill")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--trace", type=Path, required=True, metavar="CSV", help="jobs of the Philly format")
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help=f"only this one; repeat it for more (else {_POLICIES})"
    )
    parser.add_argument("--nodes", type=int, default=100, metavar="N", help="nodes of 8 GPUs (default 100)")
    parser.add_argument("--jobs", type=int, metavar="N", help="only the first N to arrive (default all)")
    parser.add_argument(
        "--limit-factor", type=float, default=1.0, metavar="F", help="limits over run times, 1 or more (default 1)"
    )
    parser.add_argument("--every", type=float, default=60.0, metavar="S", help="seconds between passes (default 60)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Replay the trace with each policy."""
    try:
        _compare(report, options)
    except (BackendError, OSError, UnicodeDecodeError) as error:
        print(f"philly: {error.message if isinstance(error, BackendError) else error}", file=sys.stderr)
        raise SystemExit(2) from None


def _compare(report: Report, options: argparse.Namespace) -> None:
    node = {"name": "n", "count": max(1, options.nodes), "slots": {"cpu": 64, "mem": "512g", "cuda.device": 8}}
    nodes = read_nodes("--nodes", [json.dumps(node)])
    with options.trace.open(encoding="utf-8") as file:
        jobs = read_trace(str(options.trace), file, nodes)
    jobs = sorted(jobs, key=lambda job: (job.session.submitted_at, job.session.id))[: options.jobs]
    jobs = [_with_limit(job, max(1.0, options.limit_factor)) for job in jobs]
    for name in options.policy or _POLICIES:
        policy = load_policy(name, "concentrated")
        started = time.perf_counter()
        summary = summarise(simulate(nodes, jobs, policy, every_s=options.every, progress=_tell(name)))
        report.add(f"philly.{name}.jct.s", "s", summary.jct_mean_s)
        report.add(f"philly.{name}.wait.s", "s", summary.wait_mean_s)
        report.add(f"philly.{name}.slowdown", "x", summary.slowdown)
        report.add(f"philly.{name}.jain", "index", summary.jain)
        report.add(f"philly.{name}.utilisation", "%", 100 * summary.utilisation)
        report.add(f"philly.{name}.never_started", "jobs", summary.never_started)
        report.add(f"philly.{name}.replay.s", "s", time.perf_counter() - started)


def _with_limit(job: Job, factor: float) -> Job:
    return replace(job, session=replace(job.session, time_limit_s=job.duration_s * factor))


def _tell(policy: str) -> Progress:
    def tell(done: int, jobs: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{policy}: {done} of {jobs} jobs", end="\r", file=sys.stderr, flush=True)

    return tell

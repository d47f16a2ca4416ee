"""Scheduling policies on a trace of the Philly format, in virtual time: who waits how long, and how fairly.

The cluster is alike nodes of 8 GPUs. Owners are the trace's virtual clusters; each is a project of its own. The trace
has neither priorities nor time limits: a job's limit is the time it really ran, times ``--limit-factor``. Each policy
replays the same jobs once; nothing is random.

``priority`` is no policy but ``fifo`` where every tenth job to arrive has a higher priority, whoever owns it; how long
these waited is a figure of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backendai_ray.core.errors import BackendError
from backendai_ray.plugins import load_policy
from bench.figures import Report
from policies.simulator.engine import History, Progress, simulate
from policies.simulator.jobs import Job
from policies.simulator.metrics import summarise
from policies.simulator.node_files import read_nodes
from policies.simulator.trace_files import read_trace

_POLICIES = ("fifo", "drf", "fair-share", "priority", "lifo", "backfill")
_PRIORITY = "priority"
_EVERY, _HIGH = 10, 50


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
        policy = load_policy("fifo" if name == _PRIORITY else name, "concentrated")
        started = time.perf_counter()
        given = _with_bands(jobs) if name == _PRIORITY else jobs
        history = simulate(nodes, given, policy, every_s=options.every, progress=_tell(name))
        summary = summarise(history)
        report.add(f"philly.{name}.jct.s", "s", summary.jct_mean_s)
        report.add(f"philly.{name}.wait.s", "s", summary.wait_mean_s)
        report.add(f"philly.{name}.slowdown", "x", summary.slowdown)
        report.add(f"philly.{name}.jain", "index", summary.jain)
        report.add(f"philly.{name}.utilisation", "%", 100 * summary.utilisation)
        report.add(f"philly.{name}.never_started", "jobs", summary.never_started)
        report.add(f"philly.{name}.replay.s", "s", time.perf_counter() - started)
        if name == _PRIORITY:
            report.add(f"philly.{name}.high.wait.s", "s", _mean_wait(history, _HIGH))


def _with_bands(jobs: Sequence[Job]) -> list[Job]:
    """Give some of the jobs a higher priority: every tenth to arrive."""
    return [
        replace(job, session=replace(job.session, priority=_HIGH)) if index % _EVERY == 0 else job
        for index, job in enumerate(jobs)
    ]


def _mean_wait(history: History, priority: int) -> float:
    waits = [
        history.started_at[job.session.id] - job.session.submitted_at
        for job in history.jobs
        if job.session.priority == priority and job.session.id in history.started_at
    ]
    return sum(waits) / max(1, len(waits))


def _with_limit(job: Job, factor: float) -> Job:
    return replace(job, session=replace(job.session, time_limit_s=job.duration_s * factor))


def _tell(policy: str) -> Progress:
    def tell(done: int, jobs: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{policy}: {done} of {jobs} jobs", end="\r", file=sys.stderr, flush=True)

    return tell

"""What a history comes to in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..columns import Floats
from .engine import History

_SHORTEST_S = 10.0
"""Shorter jobs count as that long in a slowdown, else the very short ones decide it (the usual bound)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one history; times in seconds, parts between 0 and 1."""

    jobs: int
    never_started: int
    makespan_s: float
    """From the first arrival to the last end."""
    utilisation: float
    """The part of the measured slot that was in use, over the makespan."""
    fragmentation: float
    """The part of the measured slot that was free on nodes that were not empty, over the makespan."""
    wait_mean_s: float
    wait_median_s: float
    wait_p95_s: float
    jct_mean_s: float
    """Job completion time: from arrival to end."""
    jct_median_s: float
    slowdown: float
    """Mean over the jobs of completion time over run time, run times below 10 s counted as 10 s; at least 1."""
    jain: float
    """Jain's index over the owners, of the part of their jobs' time in which they ran; 1: all were served alike."""
    passes: int


def summarise(history: History) -> Summary:
    """Sum a history up; jobs that never started count in ``never_started`` only."""
    done = [job for job in history.jobs if job.session.id in history.started_at]
    submitted = np.array([job.session.submitted_at for job in done], dtype=np.float64)
    wait = np.array([history.started_at[job.session.id] for job in done], dtype=np.float64) - submitted
    run = np.array([job.duration_s for job in done], dtype=np.float64)
    makespan = history.ended_at - history.jobs[0].session.submitted_at if history.jobs else 0.0
    whole = history.usage.capacity * makespan or 1.0
    some = len(done) > 0
    return Summary(
        jobs=len(history.jobs),
        never_started=len(history.jobs) - len(done),
        makespan_s=makespan,
        utilisation=history.usage.busy_s / whole,
        fragmentation=history.usage.pieces_s / whole,
        wait_mean_s=float(wait.mean()) if some else 0.0,
        wait_median_s=float(np.median(wait)) if some else 0.0,
        wait_p95_s=float(np.percentile(wait, 95)) if some else 0.0,
        jct_mean_s=float((wait + run).mean()) if some else 0.0,
        jct_median_s=float(np.median(wait + run)) if some else 0.0,
        slowdown=float(np.maximum(1.0, (wait + run) / np.maximum(run, _SHORTEST_S)).mean()) if some else 1.0,
        jain=_service_index([str(job.session.access_key) for job in done], run, wait),
        passes=history.passes,
    )


def jain_index(values: Iterable[float]) -> float:
    """Return Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    x = np.array(list(values), dtype=np.float64)
    return float(x.sum() ** 2 / (len(x) * (x**2).sum())) if x.any() else 1.0


def _service_index(owners: list[str], run: Floats, wait: Floats) -> float:
    ran: dict[str, float] = {}
    there: dict[str, float] = {}
    for owner, run_s, wait_s in zip(owners, run.tolist(), wait.tolist(), strict=True):
        ran[owner] = ran.get(owner, 0.0) + run_s
        there[owner] = there.get(owner, 0.0) + run_s + wait_s
    return jain_index(ran[owner] / there[owner] if there[owner] else 1.0 for owner in ran)

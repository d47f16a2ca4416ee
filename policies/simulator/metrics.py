"""What a history comes to in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from backendai_ray.core.slots import SlotName

from ..columns import Floats
from .engine import History

_OUT = 2
"""Column of :meth:`.timeline.Timeline.means`."""
_SHORTEST_S = 10.0
"""Shorter jobs count as that long in a slowdown, else the very short ones decide it (the usual bound)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one history; times in seconds, parts between 0 and 1."""

    jobs: int
    never_started: int
    failed: int
    """Started, and were given up after their node had failed, or were preempted for good."""
    lost_runs: int
    """How often a session was cut off because its node failed."""
    preemptions: int
    """How often a session was cut off for a more important one."""
    makespan_s: float
    """From the first arrival to the last end."""
    utilisation: float
    """The part of the measured slot that was in use, over the makespan."""
    fragmentation: float
    """The part of the measured slot that was free on nodes that were not empty, over the makespan."""
    wasted: float
    """The part of the measured slot that was in use by runs that were cut off, over the makespan."""
    out: float
    """The part of the measured slot that was on nodes that had failed, over the makespan."""
    wait_mean_s: float
    """From arrival to the first start."""
    wait_median_s: float
    wait_p95_s: float
    wait_max_s: float
    jct_mean_s: float
    """Job completion time: from arrival to end, of the jobs that were done."""
    jct_median_s: float
    jct_p95_s: float
    slowdown: float
    """Mean over the jobs of completion time over run time, run times below 10 s counted as 10 s; at least 1."""
    jain: float
    """Jain's index over the owners, of the part of their jobs' time in which they ran; 1: all were served alike."""
    passes: int


def summarise(history: History) -> Summary:
    """Sum a history up; jobs that never started, or failed, count in ``never_started`` and ``failed`` only."""
    done = [job for job in history.jobs if job.session.id in history.finished_at]
    submitted = np.array([job.session.submitted_at for job in done], dtype=np.float64)
    wait = np.array([history.started_at[job.session.id] for job in done], dtype=np.float64) - submitted
    jct = np.array([history.finished_at[job.session.id] for job in done], dtype=np.float64) - submitted
    run = np.array([job.duration_s for job in done], dtype=np.float64)
    begin = history.jobs[0].session.submitted_at if history.jobs else 0.0
    makespan = history.ended_at - begin
    whole = history.usage.capacity * makespan or 1.0
    out = history.timeline.means(np.array([begin, history.ended_at]))[0, _OUT] if makespan else 0.0
    return Summary(
        jobs=len(history.jobs),
        never_started=len(history.jobs) - len(history.started_at),
        failed=len(history.started_at) - len(done),
        lost_runs=sum(one.is_lost and not one.is_preempted for one in history.runs),
        preemptions=sum(one.is_preempted for one in history.runs),
        makespan_s=makespan,
        utilisation=history.usage.busy_s / whole,
        fragmentation=history.usage.pieces_s / whole,
        wasted=_wasted(history) / whole,
        out=float(out) / (history.usage.capacity or 1),
        wait_mean_s=_mean(wait),
        wait_median_s=_percentile(wait, 50),
        wait_p95_s=_percentile(wait, 95),
        wait_max_s=_percentile(wait, 100),
        jct_mean_s=_mean(jct),
        jct_median_s=_percentile(jct, 50),
        jct_p95_s=_percentile(jct, 95),
        slowdown=float(np.maximum(1.0, jct / np.maximum(run, _SHORTEST_S)).mean()) if done else 1.0,
        jain=_service_index([str(job.session.access_key) for job in done], run, jct),
        passes=history.passes,
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _percentile(values: Floats, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0


def _wasted(history: History) -> float:
    """Return units of the measured slot times seconds of the runs that were cut off."""
    lost = [one for one in history.runs if one.is_lost]
    ids = {one.session_id for one in lost}
    sessions = {job.session.id: job.session for job in history.jobs if job.session.id in ids}
    slot = SlotName(history.usage.slot)
    return sum(
        (one.ended_at - one.started_at)
        * sessions[one.session_id].slots.amount(slot)
        * len(sessions[one.session_id].kernel_ids)
        for one in lost
    )


def jain_index(values: Iterable[float]) -> float:
    """Return Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    x = np.array(list(values), dtype=np.float64)
    return float(x.sum() ** 2 / (len(x) * (x**2).sum())) if x.any() else 1.0


def _service_index(owners: list[str], run: Floats, jct: Floats) -> float:
    ran: dict[str, float] = {}
    there: dict[str, float] = {}
    for owner, run_s, jct_s in zip(owners, run.tolist(), jct.tolist(), strict=True):
        ran[owner] = ran.get(owner, 0.0) + run_s
        there[owner] = there.get(owner, 0.0) + jct_s
    return jain_index(ran[owner] / there[owner] if there[owner] else 1.0 for owner in ran)

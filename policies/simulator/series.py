"""What of a history changes over time, as series for plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..columns import Floats
from .engine import History
from .jobs import Job


@dataclass(frozen=True, slots=True)
class Series:
    """A history cut into equal spans of time; values are means over each span, parts between 0 and 1."""

    name: str
    at_s: Floats
    """The middle of each span, seconds since the first arrival."""
    utilisation: Floats
    fragmentation: Floats
    out: Floats
    waiting: Floats
    """Sessions."""
    jain: Floats
    """Over the owners who had a session in the span, of the part of their sessions' time in which they ran."""
    waits_s: Floats
    """How long jobs waited for their first start: the quantiles from 0 to 1 in equal steps; empty: none started."""


def series_of(name: str, history: History, *, until_s: float, spans: int = 200) -> Series:
    """Cut a history up.

    Args:
        name: Of the policy.
        history: What happened.
        until_s: Where the last span ends, seconds since the first arrival.
        spans: How many.
    """
    begin = history.jobs[0].session.submitted_at if history.jobs else 0.0
    edges = np.linspace(begin, begin + max(until_s, 1e-9), spans + 1)
    means = history.timeline.means(edges)
    whole = history.usage.capacity or 1
    waits = [history.started_at[j.session.id] - j.session.submitted_at for j in history.jobs if _started(history, j)]
    return Series(
        name=name,
        at_s=(edges[:-1] + edges[1:]) / 2 - begin,
        utilisation=means[:, 0] / whole,
        fragmentation=means[:, 1] / whole,
        out=means[:, 2] / whole,
        waiting=means[:, 3],
        jain=_jain_over_time(history, edges),
        waits_s=np.quantile(waits, np.linspace(0, 1, spans + 1)) if waits else np.zeros(0),
    )


def _started(history: History, job: Job) -> bool:
    return job.session.id in history.started_at


def _jain_over_time(history: History, edges: Floats) -> Floats:
    """Return Jain's index in each span; not a number where nobody had a session."""
    owner_of = {job.session.id: str(job.session.access_key) for job in history.jobs}
    there: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ran: dict[str, list[tuple[float, float]]] = defaultdict(list)
    last_end = {run.session_id: run.ended_at for run in history.runs}
    for job in history.jobs:
        # One that never started waits to the end; one that failed was there until then.
        left_at = last_end.get(job.session.id, history.ended_at)
        there[owner_of[job.session.id]].append((job.session.submitted_at, left_at))
    for run in history.runs:
        ran[owner_of[run.session_id]].append((run.started_at, run.ended_at))
    total = np.zeros(len(edges) - 1)
    squares, owners = total.copy(), total.copy()
    for owner, stays in there.items():
        time_there = _overlap(stays, edges)
        is_there = time_there > 1e-9 * np.diff(edges)
        part = np.where(is_there, _overlap(ran[owner], edges) / np.where(is_there, time_there, 1.0), 0.0)
        total += part
        squares += part**2
        owners += is_there
    served_alike = np.where(owners > 0, 1.0, np.nan)  # also when all of them got nothing
    result: Floats = np.where(squares > 0, total**2 / np.maximum(owners * squares, 1e-300), served_alike)
    return result


def _overlap(intervals: Sequence[tuple[float, float]], edges: Floats) -> Floats:
    """Return how much time all intervals together have in each span."""
    if not intervals:
        return np.zeros(len(edges) - 1)
    table = np.array(intervals, dtype=np.float64)
    whole = _passed_since(table[:, 0], edges) - _passed_since(table[:, 1], edges)
    result: Floats = np.maximum(0.0, np.diff(whole))
    return result


def _passed_since(moments: Floats, edges: Floats) -> Floats:
    """Return, for each edge, the time that has passed since the moments before it, summed over them."""
    moments = np.sort(moments) - edges[0]  # small numbers: sums of Unix times would lose what matters
    sums = np.concatenate([[0.0], np.cumsum(moments)])
    before = np.searchsorted(moments, edges - edges[0], side="right")
    result: Floats = before * (edges - edges[0]) - sums[before]
    return result

"""The real Manager, Sokovan and policy host on virtual time, while calls get lost and processes are killed, by seeds.

Not a measure but a search: every seed is one history of a small cluster in which everything fails for a minute (calls
are lost, doubled, late and unanswered; the Manager, Sokovan, the policy host, agents and machines are killed; the
store goes away), and then nothing may be lost, doubled, overbooked or stuck. A seed that fails is printed, and takes
the same steps again with ``--seed``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial

from actors.testing.trial import Verdict, run_trial
from bench.figures import Report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin (default 0)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="only this one, and what happened in it")
    parser.add_argument("--sessions", type=int, default=12, metavar="N", help="sessions in each (default 12)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="begin no new seed after so long (default: all seeds)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Try the seeds; the exit code is 1 when one fails."""
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + max(1, options.seeds))
    began = time.perf_counter()
    until = None if options.seconds is None else began + options.seconds
    verdicts: list[Verdict] = []
    with multiprocessing.get_context("spawn").Pool(min(max(1, options.jobs), len(seeds))) as pool:
        for verdict in pool.imap_unordered(partial(run_trial, sessions=max(1, options.sessions)), seeds):
            verdicts.append(verdict)
            if verdict.violations or options.seed is not None:
                _tell(verdict, with_story=options.seed is not None)
            if until is not None and time.perf_counter() > until:
                break
    failed = [verdict.seed for verdict in verdicts if verdict.violations]
    report.add("faults.seeds", "seeds", len(verdicts))
    report.add("faults.failed", "seeds", len(failed))
    report.add("faults.sessions", "sessions", sum(verdict.sessions for verdict in verdicts))
    report.add("faults.virtual.s", "s", sum(verdict.virtual_s for verdict in verdicts))
    report.add("faults.seeds_per_s", "1/s", len(verdicts) / (time.perf_counter() - began))
    if failed:
        print(f"faults: {len(failed)} seeds failed: {', '.join(map(str, sorted(failed)[:20]))}", file=sys.stderr)
        raise SystemExit(1)


def _tell(verdict: Verdict, *, with_story: bool) -> None:
    lines = [f"seed {verdict.seed}: {len(verdict.violations)} violations, digest {verdict.digest}"]
    lines += [f"    {violation}" for violation in verdict.violations]
    if with_story:
        lines += [f"    {disaster}" for disaster in verdict.disasters]
    else:
        lines.append(f"    again: python -m bench faults --seed {verdict.seed}")
    print("\n".join(lines), file=sys.stderr)

"""GPU allocation on the openb traces by the published protocol, against Random, BestFit and FGD as published.

The tasks of a trace arrive in random order, then are drawn from it again, until they ask for 130 % of all GPUs. Each
is tried once, nothing departs, what does not fit is dropped. The figure is the part of all GPUs that is allocated when
demand has reached 100 % and 130 %, in percent.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from backendai_ray.core.errors import BackendError
from bench.figures import Report
from bench.openb_replay import World, replay
from bench.openb_rules import RULES
from bench.openb_trace import ARRIVED_PCT, arrivals, read_nodes, read_tasks, trace_name

_FIRST_SEED = 42
_TIMED = "fragmentation"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--nodes", type=Path, required=True, metavar="CSV", help="node list of the openb format")
    parser.add_argument("--trace", type=Path, required=True, metavar="CSV", help="tasks of the openb format")
    parser.add_argument(
        "--selection", choices=sorted(RULES), metavar="NAME", help="only this one; else all: %(choices)s"
    )
    parser.add_argument("--seeds", type=_at_least_one, default=10, metavar="N", help="orders of arrival (default 10)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Replay the trace with each rule and seed."""
    try:
        _compare(report, options)
    except BackendError as error:
        print(f"openb: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None


def _compare(report: Report, options: argparse.Namespace) -> None:
    cluster, tasks = read_nodes(options.nodes), read_tasks(options.trace)
    name = trace_name(options.trace)
    for rule in [options.selection] if options.selection else RULES:
        at_100: list[float] = []
        at_130: list[float] = []
        seconds: list[float] = []
        for seed in range(_FIRST_SEED, _FIRST_SEED + options.seeds):
            world = World(cluster.in_order(np.random.default_rng([seed, 0]).permutation(len(cluster.cpu))))
            coming = arrivals(tasks, cluster.gpu_milli, seed)
            started = time.perf_counter()
            allocated = replay(world, RULES[rule](world, tasks, seed), coming, cluster.gpu_milli)
            seconds.append(time.perf_counter() - started)
            at_100.append(float(allocated[100]))
            at_130.append(float(allocated[ARRIVED_PCT]))
        report.add(f"openb.{name}.{rule}.alloc100", "%", at_100)
        report.add(f"openb.{name}.{rule}.alloc130", "%", at_130)
        if rule == (options.selection or _TIMED):
            report.add(f"openb.{name}.seconds", "s", seconds)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number

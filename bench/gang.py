"""53 gangs on 32 nodes of 8 GPUs, in virtual time: how many waves they take and how full the GPUs are meanwhile.

The scenario of NVIDIA Knavigator's gang-scheduling benchmark: all gangs come at once and run equally long; each of
their kernels asks for a whole node. They come to 288 nodes, so 9 waves are the fewest possible.
"""

from __future__ import annotations

import argparse
import sys

from backendai_ray.core.errors import BackendError
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.plugins import load_policy
from bench.figures import Report
from policies.simulator.engine import simulate
from policies.simulator.jobs import make_job
from policies.simulator.metrics import summarise
from policies.simulator.node_files import read_nodes

GANGS = (
    (1, 32), (2, 16), (3, 10), (1, 2), (4, 8), (5, 6), (2, 1), (6, 5), (1, 2), (7, 4), (1, 2), (2, 1), (8, 4), (9, 3),
    (1, 5),
)  # fmt: skip
"""``(how many, of how many nodes each)``, in the order in which they are submitted."""
_NODES = '{"name": "n", "count": 32, "slots": {"cpu": 64, "mem": "512g", "cuda.device": 8}}'
_RUN_S = 120.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--policy", default="fifo", metavar="NAME", help="scheduling policy (default fifo)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Replay the scenario."""
    try:
        policy = load_policy(options.policy, "concentrated")
    except BackendError as error:
        print(f"gang: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    slots = ResourceSlots.parse({"cpu": 1, "mem": "1g", "cuda.device": 8})
    sizes = [size for number, size in GANGS for _ in range(number)]
    jobs = [
        make_job(f"gang-{i:02}", slots, submitted_at=0.0, duration_s=_RUN_S, size=size, mode=ClusterMode.MULTI_NODE)
        for i, size in enumerate(sizes)
    ]
    summary = summarise(simulate(read_nodes("nodes", [_NODES]), jobs, policy, checked=True))
    if summary.never_started:
        print(f"gang: {summary.never_started} gangs never started", file=sys.stderr)
        raise SystemExit(1)
    report.add("gang.waves", "waves", summary.makespan_s / _RUN_S)
    report.add("gang.occupancy", "%", 100 * summary.utilisation)

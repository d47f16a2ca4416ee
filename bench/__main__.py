"""``python -m bench NAME [options] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from bench.figures import Report

BENCHES = {
    "session_start": "from the create call to the first output, against the same container through the Docker SDK",
    "execute": "one execute round trip and the flow of output, against jupyter_client and ipykernel",
    "submit": "what the control plane adds to a start, and no-op batch sessions per second",
    "recover": "time to schedule again after a kill -9, and what was lost or leaked",
    "cycles": "sessions made and ended while the agent is killed at random moments: what is left of them, by kind",
    "store": "durable commits per second, against a bare INSERT and COMMIT loop",
    "alloc": "the allocator: worst choice among 16 GPUs, NVIDIA's picks on a DGX-1, rates against the original's",
    "openb": "GPU allocation on a trace of the openb format, against Random, BestFit and FGD as published",
    "gang": "gangs that fill a cluster in waves, in virtual time: the fewest waves there could be are 9",
    "kueue": "the 15,000 workloads of Kueue's own performance test, in real time",
    "throughput": "passes over 10,000 nodes, decisions with their commit per second, from a release to the next start",
    "philly": "waiting, completion, slowdown and fairness of policies on a trace of the Philly format, in virtual time",
    "faults": "the control plane on virtual time while everything fails, by seeds; a seed that fails can be run again",
    "idle": "memory and CPU of an idle cluster, against Ray alone with as many empty actors",
}


def main() -> int:
    """Run one bench."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    benches = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, summary in BENCHES.items():
        bench = benches.add_parser(name, help=summary, description=summary)
        bench.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
        importlib.import_module(f"bench.{name}").add_options(bench)
    options = parser.parse_args()
    report = Report()
    importlib.import_module(f"bench.{options.name}").run(report, options)
    if options.json:
        report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The allocator: the worst choice among 16 linked GPUs, NVIDIA's picks on a DGX-1, random streams of requests against
first-free and single-numa-node, and rates against the original's.

A rate counts pairs of allocate and free on a map that is partly held: 2 of 8 GPUs, 8 of 128 cores, half a GPU of 8.
The original has two strategies, ``fill`` and ``evenly``, and each is a case; ours has one way, measured beside both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from statistics import median

from actors.agent.devices.mock import MockPlugin
from backendai_ray.config import AgentSettings, DeviceSettings
from backendai_ray.core import device_sets
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.device_sets import BestLinked
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.slots import CPU, UNITS_PER_COUNT, ResourceSlots, SlotName
from backendai_ray.core.topology import Layout, SlotLayout
from bench import alloc_streams
from bench.figures import Figure, Report
from bench.nvidia_picks import DGX1_CASES, DGX1_ROWS, GPU, Box, Case
from bench.original import OriginalAllocator, OriginalMissing, find_python

_SHARES = SlotName("cuda.shares")
CASES = {
    # name: slot, devices, units held, units asked for
    "gpu8_discrete_2": (GPU, 8, 3000, 2000),
    "cpu128_discrete_8": (CPU, 128, 64_000, 8000),
    "gpu8_fraction_0.5": (_SHARES, 8, 2500, 500),
}
STRATEGIES = ("fill", "evenly")
_BATCH = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--rounds", type=int, default=7, help="samples of each figure (default 7)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a sample of a rate (default 0.3)")
    parser.add_argument("--streams", type=int, default=10, help="random streams of requests (default 10)")
    parser.add_argument("--requests", type=int, default=1000, help="requests in each (default 1000)")
    parser.add_argument(
        "--original",
        default="",
        metavar="PYTHON",
        help="interpreter with backend.ai-agent; default: one of our own, installed from PyPI the first time; "
        "'none': do not compare",
    )


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure; the original takes turns with ours."""
    _sixteen(report, options.rounds)
    _nvidia(report)
    alloc_streams.measure(report, seeds=options.streams, requests=options.requests)
    with ExitStack() as stack:
        original: OriginalAllocator | None = None
        if options.original != "none":
            try:
                original = stack.enter_context(OriginalAllocator(find_python(options.original)))
                original.rate("gpu8_discrete_2", "fill", options.seconds)  # it is there, and warm
            except OriginalMissing as error:
                original = None
                print(f"alloc: no ratios: {error}", file=sys.stderr)
        for case in CASES:
            for strategy in STRATEGIES:
                _compare(report, case, strategy, original, options)


def _sixteen(report: Report, rounds: int) -> None:
    """Time every set size on a box of 16 of which all is free, with nothing remembered from before."""
    settings = AgentSettings(devices=DeviceSettings(mock="box16"))
    layout = Layout.of(MockPlugin(settings).devices()).slots[GPU]
    free = tuple(range(len(layout.ids)))
    samples: dict[int, list[float]] = {}
    for _ in range(rounds):
        for count in range(1, len(free) + 1):
            device_sets._all_sets.cache_clear()
            started = time.perf_counter()
            BestLinked().choose(layout, free, count, ())
            samples.setdefault(count, []).append((time.perf_counter() - started) * 1000)
    worst = max(samples, key=lambda count: median(samples[count]))
    report.add("alloc.gpu16.ms", "ms", samples[worst])
    report.add("alloc.gpu16.worst_size", "GPUs", worst)


def _nvidia(report: Report) -> None:
    """Count the cases in which NVIDIA's pick is better than ours, by links alone and with NUMA nodes before them."""
    report.add("alloc.dgx1.cases", "cases", len(DGX1_CASES))
    report.add("alloc.dgx1.worse", "cases", sum(_is_worse(case, numa=False) for case in DGX1_CASES))
    report.add("alloc.dgx1.numa.worse", "cases", sum(_is_worse(case, numa=True) for case in DGX1_CASES))
    report.add("alloc.dgx1.row.worse", "cases", sum(_worse_in_row(box, picks) for box, picks in DGX1_ROWS))


def _is_worse(case: Case, *, numa: bool) -> bool:
    layout = Layout.of(case.box.devices(numa=numa)).slots[GPU]
    free, theirs = ([layout.index[DeviceId(str(gpu))] for gpu in gpus] for gpus in (case.free, case.pick))
    ours = BestLinked().choose(layout, sorted(free), len(theirs), ())
    return _cost(layout, theirs) < _cost(layout, ours)


def _worse_in_row(box: Box, picks: Sequence[tuple[int, ...]]) -> int:
    """Count the requests of a row that end up worse than NVIDIA's when ours took all those before as well."""
    layout = Layout.of(box.devices()).slots[GPU]
    free, worse = list(range(len(layout.ids))), 0
    for pick in picks:
        ours = BestLinked().choose(layout, free, len(pick), ())
        free = [position for position in free if position not in ours]
        worse += _cost(layout, [layout.index[DeviceId(str(gpu))] for gpu in pick]) < _cost(layout, ours)
    return worse


def _cost(layout: SlotLayout, chosen: Sequence[int]) -> tuple[int, int]:
    nodes = {layout.numa[i] for i in chosen} - {device_sets.NO_NUMA}
    return len(nodes), -sum(layout.links[i][j] for i, j in combinations(chosen, 2))


def _compare(
    report: Report, case: str, strategy: str, original: OriginalAllocator | None, options: argparse.Namespace
) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        ours.append(_rate(case, options.seconds))
        if original is not None:
            theirs.append(original.rate(case, strategy, options.seconds))
    mine: Figure = report.add(f"alloc.{case}.{strategy}.per_s", "1/s", ours)
    if theirs:
        peer = report.add(f"alloc.{case}.{strategy}.original.per_s", "1/s", theirs)
        report.ratio(f"alloc.{case}.{strategy}.ratio", mine, peer)


def _rate(case: str, seconds: float) -> float:
    slot, devices, held, wanted = CASES[case]
    room = DeviceMap([Device(slot, DeviceId(str(number)), UNITS_PER_COUNT) for number in range(devices)])
    _take(room, KernelId("held"), ResourceSlots([(slot, held)]))
    request, kernel = ResourceSlots([(slot, wanted)]), KernelId("k")
    pairs, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(_BATCH):
            _take(room, kernel, request)
            room.release(kernel)
        pairs += _BATCH
    return pairs / (time.perf_counter() - started)


def _take(room: DeviceMap, kernel: KernelId, request: ResourceSlots) -> None:
    found = room.allocate(request)
    assert isinstance(found, Allocation)
    room.hold(kernel, found)

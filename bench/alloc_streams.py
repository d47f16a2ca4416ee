"""Random streams of requests for whole GPUs: our choices beside first-free and the kubelet's single-numa-node.

A stream is made from a seed: who comes when, how many GPUs are wanted and for how long. A request that does not fit
when it comes is turned away, so that a policy which fragments its box pays with rejects. All policies see the same
stream.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from actors.agent.devices.mock import MockPlugin
from backendai_ray.config import AgentSettings, DeviceSettings
from backendai_ray.core.device_sets import BestLinked
from backendai_ray.core.topology import Layout, SlotLayout
from bench.figures import Report
from bench.nvidia_picks import GPU

SIZES = {1: 0.4, 2: 0.25, 4: 0.2, 8: 0.15}
"""Shares of the requests by number of GPUs."""
LOAD = 0.8
"""GPUs asked for at a time, on average, over the GPUs there are."""

Choose = Callable[[SlotLayout, Sequence[int], int], Sequence[int] | None]
"""Returns positions out of the free ones; ``None`` turns the request away."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a stream."""

    at: float
    gpus: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How a policy served a stream."""

    rejected: float
    """Of all requests."""
    served: float
    """GPU-seconds served, of those asked for."""
    one_node: float
    """Of the requests served that wanted several GPUs: those on the fewest NUMA nodes that could ever hold them."""
    links: float
    """What the links between the GPUs of such a request are worth, per pair and on average."""


def make_stream(seed: int, count: int, gpus: int) -> list[Request]:
    """Return a stream for a box with so many GPUs."""
    source = random.Random(seed)
    mean_gpus = sum(size * share for size, share in SIZES.items())
    at, found = 0.0, []
    for _ in range(count):
        at += source.expovariate(LOAD * gpus / mean_gpus)  # lifetimes are 1 on average
        (size,) = source.choices(list(SIZES), list(SIZES.values()))
        found.append(Request(at, size, source.expovariate(1.0)))
    return found


def serve(layout: SlotLayout, stream: Sequence[Request], choose: Choose) -> Quality:
    """Serve a stream by one policy."""
    free = list(range(len(layout.ids)))
    ends: list[tuple[float, int, Sequence[int]]] = []
    rejected = several = compact = 0
    served = 0.0
    worth: list[float] = []
    for number, request in enumerate(stream):
        while ends and ends[0][0] <= request.at:
            free = sorted([*free, *heapq.heappop(ends)[2]])
        chosen = choose(layout, free, request.gpus) if request.gpus <= len(free) else None
        if chosen is None:
            rejected += 1
            continue
        free = [position for position in free if position not in chosen]
        served += request.gpus * request.seconds
        heapq.heappush(ends, (request.at + request.seconds, number, chosen))
        if request.gpus > 1:
            several += 1
            compact += len({layout.numa[i] for i in chosen}) == _fewest_nodes(layout, request.gpus)
            pairs = list(combinations(chosen, 2))
            worth.append(sum(layout.links[i][j] for i, j in pairs) / len(pairs))
    asked = sum(request.gpus * request.seconds for request in stream)
    return Quality(
        rejected=rejected / len(stream),
        served=served / asked,
        one_node=compact / max(1, several),
        links=sum(worth) / max(1, len(worth)),
    )


def _fewest_nodes(layout: SlotLayout, count: int) -> int:
    sizes = sorted((len(members) for members in layout.by_numa.values()), reverse=True)
    return next(number for number in range(1, len(sizes) + 1) if sum(sizes[:number]) >= count)


def first_free(layout: SlotLayout, free: Sequence[int], count: int) -> Sequence[int]:
    """Return the first GPUs that are free."""
    return free[:count]


def single_numa_node(layout: SlotLayout, free: Sequence[int], count: int) -> Sequence[int] | None:
    """Return the first free GPUs of one NUMA node, as the kubelet's policy of that name admits; else turn away."""
    for members in layout.by_numa.values():
        here = [position for position in free if position in members]
        if len(here) >= count:
            return here[:count]
    return None


def measure(report: Report, *, seeds: int, requests: int) -> None:
    """Report the quality of every policy on every box: the mean over the seeds, and how far they lie apart."""
    for box in ("dgx1", "box16"):
        layout = Layout.of(MockPlugin(AgentSettings(devices=DeviceSettings(mock=box))).devices()).slots[GPU]
        best = BestLinked()
        policies: dict[str, Choose] = {
            "ours": lambda layout, free, count, best=best: best.choose(layout, free, count, ()),  # type: ignore[misc]
            "first_free": first_free,
            "single_numa_node": single_numa_node,
        }
        streams = [make_stream(seed, requests, len(layout.ids)) for seed in range(seeds)]
        for name, choose in policies.items():
            served = [serve(layout, stream, choose) for stream in streams]
            report.add(f"alloc.stream.{box}.{name}.rejected", "%", [100 * one.rejected for one in served])
            report.add(f"alloc.stream.{box}.{name}.served", "%", [100 * one.served for one in served])
            report.add(f"alloc.stream.{box}.{name}.fewest_nodes", "%", [100 * one.one_node for one in served])
            report.add(f"alloc.stream.{box}.{name}.link_score", "per pair", [one.links for one in served])

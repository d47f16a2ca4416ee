"""How fast decisions are made: passes over 10,000 nodes, decisions with their durable commit per second at 1,000, and
the time from a release to the next start's order.

A pass is timed as the policy actor runs it: what has changed is taken in, the policy decides, every line of the plan is
checked. The other figures are of the whole control plane (:mod:`.control_plane`).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from actors.contracts import SubmitRequest
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import ResourceGroupName
from backendai_ray.core.sessions import KernelSpec
from bench import worlds
from bench.control_plane import ControlPlane, PretendingAgent, control_plane, until
from bench.figures import Report
from bench.passes import CASES, PassBench

_LIMIT_S = 120.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes of a pass (default 10000)")
    parser.add_argument("--pending", type=int, default=10_000, help="sessions that wait in a pass (default 10000)")
    parser.add_argument("--passes", type=int, default=5, help="passes per policy and selection (default 5)")
    parser.add_argument("--agents", type=int, default=1_000, help="nodes of the whole control plane (default 1000)")
    parser.add_argument("--sessions", type=int, default=4_000, help="sessions decided per round (default 4000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the whole control plane (default 3)")
    parser.add_argument("--releases", type=int, default=50, help="releases that are timed (default 50)")


def run(report: Report, options: argparse.Namespace) -> None:
    """Time passes, decisions and releases."""
    try:
        for case in CASES:
            bench = PassBench(case, options.nodes, options.pending)
            report.add(
                f"throughput.nodes{options.nodes}.{case.name}", "s", [bench.run() for _ in range(options.passes)]
            )
            del bench
            gc.collect()
        decided, started = [], []
        for _ in range(options.rounds):
            all_decided_s, all_running_s = asyncio.run(_burst(options.agents, options.sessions))
            decided.append(options.sessions / all_decided_s)
            started.append(options.sessions / all_running_s)
        report.add(f"throughput.nodes{options.agents}.decisions_per_s", "decisions/s", decided)
        report.add(f"throughput.nodes{options.agents}.running_per_s", "sessions/s", started)
        report.add("throughput.release_to_start.ms", "ms", asyncio.run(_releases(options.agents, options.releases)))
    except BackendError as error:
        print(f"throughput: {error.message}", file=sys.stderr)
        raise SystemExit(1) from None


def _agents(count: int) -> list[PretendingAgent]:
    group, forever = ResourceGroupName("default"), _for_ever
    return [PretendingAgent(node.agent_id, node.devices, group, forever) for node in worlds.nodes(count)]


def _for_ever(_: KernelSpec) -> float | None:
    return None


async def _burst(nodes: int, sessions: int) -> tuple[float, float]:
    """Let sessions wait, then schedule; returns seconds until all were placed and committed, and until all ran."""
    async with control_plane(_agents(nodes)) as plane:
        await _submit(plane, [{"slots": slots} for slots in islice(worlds.requests(1), sessions)])
        ordered = _Countdown(sessions, plane.agents.values())
        began = time.perf_counter()
        await plane.schedule()
        await ordered.wait()
        decided_s = time.perf_counter() - began
        await until(partial(plane.are_running, sessions))
        return decided_s, time.perf_counter() - began


async def _releases(nodes: int, count: int) -> list[float]:
    """Return ms from an agent's word that a kernel has ended to the order for the kernel that takes its place.

    All nodes are full, and as many sessions wait as there are nodes.
    """
    async with control_plane(_agents(nodes)) as plane:
        whole = {"slots": worlds.a_whole_node()}
        await plane.schedule()
        full = _Countdown(nodes, plane.agents.values())
        await _submit(plane, [whole] * nodes)
        await full.wait()
        await until(partial(plane.are_running, nodes))
        await _submit(plane, [whole] * nodes)
        taken: list[float] = []
        for agent in islice(plane.agents.values(), count):
            await asyncio.sleep(0.2)  # until the pass that the last one's start led to is over
            next_one = _Countdown(1, [agent])
            began = time.perf_counter()
            agent.let_go(next(iter(agent.alive())))
            await next_one.wait()
            taken.append(1e3 * (time.perf_counter() - began))
        return taken


async def _submit(plane: ControlPlane, asked: Sequence[Mapping[str, Any]]) -> None:
    await asyncio.gather(*(plane.manager.submit(SubmitRequest(spec=plane.spec(**one))) for one in asked))


class _Countdown:
    """Waits until agents have been given so many orders for kernels."""

    def __init__(self, count: int, agents: Iterable[PretendingAgent]) -> None:
        self._missing = count
        self._done = asyncio.Event()
        for agent in agents:
            agent.on_order = self._ordered

    def _ordered(self, _: KernelSpec) -> None:
        self._missing -= 1
        if not self._missing:
            self._done.set()

    async def wait(self) -> None:
        async with asyncio.timeout(_LIMIT_S):
            await self._done.wait()

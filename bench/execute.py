"""One execute round trip and the flow of output, against jupyter_client and ipykernel on the same machine."""

from __future__ import annotations

import argparse
import time
from typing import Any

from jupyter_client.manager import KernelManager

from bench.clusters import fresh_cluster
from bench.figures import Report
from bench.kernel_peer import AgentKernel

_CODE = "1+1"
_FLOOD_MB = 64
_FLOOD = f"for i in range({_FLOOD_MB}): print('x' * ((1 << 20) - 1))"
_FLOOD_BYTES = _FLOOD_MB << 20
_BLOCK = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare this bench's options."""
    parser.add_argument("--rounds", type=int, default=400, help="round trips of each kind")
    parser.add_argument("--floods", type=int, default=5, help=f"runs that print {_FLOOD_MB} MB, of each kind")


def run(report: Report, options: argparse.Namespace) -> None:
    """Alternate blocks of round trips, then floods, between ours over HTTP, ours on the agent, and Jupyter."""
    http: list[float] = []
    agent: list[float] = []
    peer: list[float] = []
    floods: list[tuple[float, float]] = []
    with (
        fresh_cluster("process") as (_cluster, client),
        AgentKernel() as kernel,
        _Jupyter() as jupyter,
    ):
        session = client.sessions.create("python", cpu=1, mem="1g")
        for warm_up in (True, False):
            for _ in range(2 if warm_up else max(1, options.rounds // _BLOCK)):
                for once, samples in (
                    (lambda: session.run(_CODE), http),
                    (lambda: kernel.run(_CODE), agent),
                    (lambda: jupyter.run(_CODE), peer),
                ):
                    times = [_timed(once) for _ in range(_BLOCK)]
                    if not warm_up:
                        samples.extend(times)
        floods.extend((_our_flood(session), _jupyter_flood(jupyter)) for _ in range(options.floods))
        session.destroy()
    ours = report.add("execute.http.ms", "ms", http)
    on_agent = report.add("execute.agent.ms", "ms", agent)
    theirs = report.add("execute.jupyter.ms", "ms", peer)
    report.add("execute.http.ratio", "x", ours.median / theirs.median)
    report.add("execute.agent.ratio", "x", on_agent.median / theirs.median)
    flow = report.add("execute.stdout.mb_per_s", "MB/s", [ours for ours, _ in floods])
    their_flow = report.add("execute.stdout.jupyter.mb_per_s", "MB/s", [theirs for _, theirs in floods])
    report.ratio("execute.stdout.ratio", flow, their_flow)


def _timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _our_flood(session: Any) -> float:
    began = time.perf_counter()
    received = sum(len(chunk.data) for chunk in session.stream(_FLOOD) if chunk.type == "stdout")
    return _rate(received, began)


def _jupyter_flood(jupyter: _Jupyter) -> float:
    began = time.perf_counter()
    return _rate(jupyter.run(_FLOOD), began)


def _rate(received: int, began: float) -> float:
    if received != _FLOOD_BYTES:
        raise RuntimeError(f"{received} bytes arrived, {_FLOOD_BYTES} were printed")
    return received / 1e6 / (time.perf_counter() - began)


class _Jupyter:
    """A Jupyter kernel and a blocking client of it."""

    def __enter__(self) -> _Jupyter:
        self._manager = KernelManager(kernel_name="python3", ip="127.0.0.1")
        self._manager.start_kernel()
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def run(self, code: str) -> int:
        """Execute and wait for both the idle status and the reply; return the bytes of output."""
        message_id = self._client.execute(code, store_history=False)
        received = 0
        while True:
            message = self._client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            if message["msg_type"] == "stream":
                received += len(message["content"]["text"])
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        while self._client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != message_id:
            pass
        return received

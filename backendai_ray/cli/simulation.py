"""``bai simulate``: what a trace would have come to under other policies. It needs no cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from backendai_ray.cli.output import output_for
from backendai_ray.cli.progress import counting
from backendai_ray.core.errors import InvalidParameter

_T = TypeVar("_T")

_COLUMNS = (
    ("POLICY", "policy"),
    ("JOBS", "jobs"),
    ("NEVER STARTED", "never_started"),
    ("MAKESPAN", "makespan"),
    ("IN USE", "in_use"),
    ("IN PIECES", "in_pieces"),
    ("WAIT MEAN", "wait_mean"),
    ("MEDIAN", "wait_median"),
    ("P95", "wait_p95"),
    ("JCT MEAN", "jct_mean"),
    ("SLOWDOWN", "slowdown_x"),
    ("JAIN", "jain_index"),
)
_TIMES = ("makespan", "wait_mean", "wait_median", "wait_p95", "jct_mean")


@click.command("simulate")
@click.option("--nodes", type=click.Path(path_type=Path), required=True, help="The cluster: openb CSV or JSON lines.")
@click.option(
    "--trace", type=click.Path(path_type=Path), required=True, help="The jobs: openb or Philly CSV, or JSON lines."
)
@click.option(
    "--policy", "policies", multiple=True, required=True, metavar="NAME", help="A scheduling policy; repeat it."
)
@click.option("--selection", default="concentrated", show_default=True, metavar="NAME", help="The agent selection.")
@click.option(
    "--every", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Virtual time between passes; 0: none."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate_command(
    nodes: Path, trace: Path, policies: tuple[str, ...], selection: str, every: float, as_json: bool
) -> None:
    """Replay a trace under one scheduling policy or several, in virtual time, and compare them.

    \b
    bai simulate --nodes nodes.jsonl --trace jobs.jsonl --policy fifo --policy drf
    """
    try:
        from backendai_ray.plugins import load_policy
        from policies.simulator.engine import simulate
        from policies.simulator.metrics import summarise
        from policies.simulator.node_files import read_nodes
        from policies.simulator.trace_files import read_trace
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: a simulation needs `pip install 'backendai-ray[cluster]'`"
        ) from None
    loaded = [(name, load_policy(name, selection)) for name in policies]
    cluster = _read(nodes, lambda lines: read_nodes(str(nodes), lines))
    jobs = _read(trace, lambda lines: read_trace(str(trace), lines, cluster))
    rows: list[dict[str, Any]] = []
    for name, policy in loaded:
        with counting(name) as progress:
            history = simulate(cluster, jobs, policy, every_s=every, progress=progress)
        rows.append({"policy": name, **asdict(summarise(history))})
    output_for(as_json).table(_COLUMNS, rows if as_json else [_for_people(row) for row in rows], empty="No policy.")


def _read(path: Path, read: Callable[[list[str]], _T]) -> _T:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as exc:
        raise InvalidParameter(f"{path}: is no text in UTF-8: {exc.reason} at byte {exc.start}", field="file") from None
    except OSError as exc:
        raise InvalidParameter(f"{path}: cannot be read: {exc.strerror}", field="file") from None
    return read(lines)


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: _span(row[f"{name}_s"]) for name in _TIMES}
    return {
        **row,
        **times,
        "in_use": f"{100 * row['utilisation']:.1f} %",
        "in_pieces": f"{100 * row['fragmentation']:.1f} %",
        "slowdown_x": f"{row['slowdown']:.2f}",
        "jain_index": f"{row['jain']:.3f}",
    }


def _span(seconds: float) -> str:
    """Return a span of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02}{smaller}"
    return f"{whole}s"

"""``bai simulate``: what a trace would have come to under other policies. It needs no cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backendai_ray.cli.output import output_for
from backendai_ray.cli.progress import counting
from backendai_ray.core.errors import InvalidParameter

if TYPE_CHECKING:
    from backendai_ray.core.scheduling import Node
    from policies.simulator.engine import History
    from policies.simulator.faults import Faults

_T = TypeVar("_T")

_FIGURES: Sequence[tuple[str, str, Callable[[Any], str]]] = (
    ("jobs", "jobs", str),
    ("never started", "never_started", str),
    ("failed", "failed", str),
    ("lost runs", "lost_runs", str),
    ("preempted", "preemptions", str),
    ("makespan", "makespan_s", lambda seconds: _span(seconds)),
    ("in use", "utilisation", lambda part: _percent(part)),
    ("in pieces", "fragmentation", lambda part: _percent(part)),
    ("wasted", "wasted", lambda part: _percent(part)),
    ("failed nodes", "out", lambda part: _percent(part)),
    ("wait mean", "wait_mean_s", lambda seconds: _span(seconds)),
    ("wait median", "wait_median_s", lambda seconds: _span(seconds)),
    ("wait p95", "wait_p95_s", lambda seconds: _span(seconds)),
    ("wait max", "wait_max_s", lambda seconds: _span(seconds)),
    ("JCT mean", "jct_mean_s", lambda seconds: _span(seconds)),
    ("JCT median", "jct_median_s", lambda seconds: _span(seconds)),
    ("JCT p95", "jct_p95_s", lambda seconds: _span(seconds)),
    ("slowdown", "slowdown", lambda x: f"{x:.2f}"),
    ("Jain", "jain", lambda index: f"{index:.3f}"),
)
_ONLY_WITH_FAULTS = frozenset({"lost_runs", "out"})
_ONLY_WITH_LOSSES = frozenset({"failed", "wasted"})


@click.command("simulate")
@click.option("--nodes", type=click.Path(path_type=Path), required=True, help="The cluster: openb CSV or JSON lines.")
@click.option(
    "--trace", type=click.Path(path_type=Path), required=True, help="The jobs: openb or Philly CSV, or JSON lines."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="NAME[/SELECTION][:OPTIONS]",
    help="A scheduling policy, with its agent selection where it is not --selection, and its options as JSON; repeat "
    "it to compare.",
)
@click.option("--selection", default="concentrated", show_default=True, metavar="NAME", help="The agent selection.")
@click.option(
    "--every", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Virtual time between passes; 0: none."
)
@click.option(
    "--mtbf", type=float, metavar="SECONDS", help="Let nodes fail at random; mean time between failures of one node."
)
@click.option(
    "--mttr", type=float, default=3600.0, show_default=True, metavar="SECONDS", help="Mean time to repair a node."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random failures; the same: the same.")
@click.option(
    "--faults", "fault_file", type=click.Path(path_type=Path), metavar="FILE", help="Failures to replay, as JSON lines."
)
@click.option(
    "--when-lost",
    type=click.Choice(["requeue", "fail"]),
    default="requeue",
    show_default=True,
    help="What becomes of a session whose node fails.",
)
@click.option(
    "--plot", "plots", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Draw to .html, .png, .svg."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate_command(
    nodes: Path,
    trace: Path,
    policies: tuple[str, ...],
    selection: str,
    every: float,
    mtbf: float | None,
    mttr: float,
    seed: int,
    fault_file: Path | None,
    when_lost: str,
    plots: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Replay a trace under one scheduling policy or several, in virtual time, and compare them.

    \b
    bai simulate --nodes nodes.jsonl --trace jobs.jsonl --policy fifo --policy drf --plot compared.html
    bai simulate --nodes nodes.jsonl --trace jobs.jsonl --policy backfill --mtbf 1e6 --seed 7
    bai simulate --nodes nodes.jsonl --trace jobs.jsonl --policy 'fifo:{"preemption": {"scope": "group"}}'
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
    loaded = [(name, load_policy(*_named(name, selection))) for name in policies]
    if plots:
        from backendai_ray.cli.simulation_plots import check_plot

        for plot in plots:
            check_plot(plot)
    cluster = _read(nodes, lambda lines: read_nodes(str(nodes), lines))
    jobs = _read(trace, lambda lines: read_trace(str(trace), lines, cluster))
    faults = _faults(cluster, mtbf, mttr, seed, fault_file, when_lost)
    histories: list[tuple[str, History]] = []
    for name, policy in loaded:
        with counting(name) as progress:
            history = simulate(cluster, jobs, policy, every_s=every, faults=faults, progress=progress)
        histories.append((name, history))
    rows = [{"policy": name, **asdict(summarise(history))} for name, history in histories]
    table = _table(rows, with_faults=mtbf is not None or fault_file is not None)
    if as_json:
        output_for(as_json).table((), rows, empty="")
    else:
        columns = [(heading, str(index)) for index, heading in enumerate(table[0])]
        lines = [{str(index): cell for index, cell in enumerate(row)} for row in table[1:]]
        output_for(as_json).table(columns, lines, empty="")
    _draw(plots, histories, f"{trace.name} on {len(cluster)} nodes of {nodes.name}", table)


def _named(text: str, selection: str) -> tuple[str, str, dict[str, Any]]:
    """Read a policy with its selection and options.

    Raises:
        InvalidParameter: the options are no JSON object.
    """
    name, colon, options = text.partition(":")
    policy, slash, own = name.partition("/")
    try:
        read = json.loads(options) if colon else {}
    except ValueError as exc:
        raise InvalidParameter(f"--policy {name}: the options are no JSON: {exc}", field="policy") from None
    if not isinstance(read, dict):
        example = '{"strict": false}'
        raise InvalidParameter(f"--policy {name}: the options are no JSON object such as {example}", field="policy")
    return policy, own if slash else selection, read


def _faults(
    cluster: Sequence[Node], mtbf: float | None, mttr: float, seed: int, fault_file: Path | None, when_lost: str
) -> Faults:
    from policies.simulator.faults import Faults, WhenLost, read_outages

    outages = (
        _read(fault_file, lambda lines: read_outages(str(fault_file), lines, cluster)) if fault_file is not None else []
    )
    return Faults(outages=outages, mtbf_s=mtbf, mttr_s=mttr, seed=seed, when_lost=WhenLost(when_lost))


def _table(rows: Sequence[Mapping[str, Any]], *, with_faults: bool) -> list[list[str]]:
    """Return a line for each figure and a column for each policy, headings first."""
    preempts = any(row["preemptions"] for row in rows)
    hidden = (set() if with_faults else {*_ONLY_WITH_FAULTS}) | (set() if preempts else {"preemptions"})
    if not (with_faults or preempts):
        hidden |= _ONLY_WITH_LOSSES
    shown = [one for one in _FIGURES if one[1] not in hidden]
    return [
        ["FIGURE", *(row["policy"] for row in rows)],
        *([label, *(format_(row[key]) for row in rows)] for label, key, format_ in shown),
    ]


def _draw(plots: Sequence[Path], histories: Sequence[tuple[str, History]], title: str, table: list[list[str]]) -> None:
    if not plots:
        return
    from backendai_ray.cli.simulation_plots import draw
    from policies.simulator.series import series_of

    spans = [history.ended_at - history.jobs[0].session.submitted_at for _, history in histories]
    series = [series_of(name, history, until_s=max(spans)) for name, history in histories]
    for plot in plots:
        draw(plot, series, title=title, table=table)
        click.echo(f"drawn: {plot}", err=True)


def _read(path: Path, read: Callable[[list[str]], _T]) -> _T:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as exc:
        raise InvalidParameter(f"{path}: is no text in UTF-8: {exc.reason} at byte {exc.start}", field="file") from None
    except OSError as exc:
        raise InvalidParameter(f"{path}: cannot be read: {exc.strerror}", field="file") from None
    return read(lines)


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _span(seconds: float) -> str:
    """Return a span of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02}{smaller}"
    return f"{whole}s"

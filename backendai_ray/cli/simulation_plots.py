"""Plots of simulations: one picture as PNG (or SVG, PDF), or one HTML page that needs nothing but itself."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backendai_ray.core.errors import InvalidParameter

if TYPE_CHECKING:
    from policies.simulator.series import Series

FORMATS = (".html", ".png", ".svg", ".pdf")
_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 1100px; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body>
<h1>{title}</h1>
<table>{table}</table>
{picture}
</body></html>
"""


def check_plot(path: Path) -> None:
    """Find out before a long simulation whether its plot can be made.

    Raises:
        InvalidParameter: the name has no ending that says what to draw, or its folder is not there.
        ClickException: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidParameter(f"plot: {path}: the name must end in one of {', '.join(FORMATS)}", field="plot")
    if not path.parent.is_dir():
        raise InvalidParameter(f"plot: there is no folder {path.parent}; make it first", field="plot")
    _matplotlib()


def draw(path: Path, runs: Sequence[Series], *, title: str, table: Sequence[Sequence[str]]) -> None:
    """Draw simulations side by side into a file; its ending says as what.

    Args:
        path: The file; replaced when it is there.
        runs: One for each policy, cut up alike.
        title: What was simulated.
        table: Figures as text, the first row being the heading; only HTML shows them.

    Raises:
        InvalidParameter: the file cannot be written.
    """
    as_page = path.suffix.lower() == ".html"
    picture = _picture(runs, title, "svg" if as_page else path.suffix[1:].lower())
    try:
        if as_page:
            svg = picture.decode()
            path.write_text(
                _PAGE.format(title=html.escape(title), table=_rows(table), picture=svg[svg.index("<svg") :]),
                encoding="utf-8",
            )
        else:
            path.write_bytes(picture)
    except OSError as exc:
        raise InvalidParameter(f"plot: {path}: cannot be written: {exc.strerror}", field="plot") from None


def _picture(runs: Sequence[Series], title: str, format_: str) -> bytes:
    matplotlib = _matplotlib()
    # The same simulation gives the same bytes; no file may carry the day it was drawn on.
    with matplotlib.rc_context({"svg.hashsalt": "backendai-ray", "svg.fonttype": "none", "font.size": 9}):
        figure = matplotlib.figure.Figure(figsize=(11, 9), layout="constrained")
        axes = figure.subplots(3, 2).flat
        unit, size = _unit(max((float(run.at_s[-1]) for run in runs), default=0.0))
        percent: Mapping[str, Callable[[Series], Any]] = {
            "In use (%)": lambda run: 100 * run.utilisation,
            "In pieces: free on nodes that are not empty (%)": lambda run: 100 * run.fragmentation,
        }
        for label, values in percent.items():
            _over_time(next(axes), runs, values, label, unit, size, top=100)
        _over_time(next(axes), runs, lambda run: run.waiting, "Sessions waiting", unit, size)
        _over_time(next(axes), runs, lambda run: run.jain, "Fairness over the owners (Jain's index)", unit, size, top=1)
        _waits(next(axes), runs)
        _over_time(next(axes), runs, lambda run: 100 * run.out, "On failed nodes (%)", unit, size)
        figure.suptitle(title)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(runs)))
        target = io.BytesIO()
        nameless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format_)
        figure.savefig(target, format=format_, dpi=110, metadata=nameless)
        return target.getvalue()


def _over_time(
    axis: Any,
    runs: Sequence[Series],
    values: Callable[[Series], Any],
    label: str,
    unit: str,
    size: float,
    *,
    top: float | None = None,
) -> None:
    for run in runs:
        axis.plot(run.at_s / size, values(run), label=run.name, linewidth=1.2)
    axis.set_title(label)
    axis.set_xlabel(f"{unit} since the first arrival")
    axis.set_ylim(0, None if top is None else top * 1.02)
    axis.grid(alpha=0.3)


def _waits(axis: Any, runs: Sequence[Series]) -> None:
    """Draw, for each wait, which part of the jobs waited no longer."""
    unit, size = _unit(max((float(run.waits_s[-1]) for run in runs if len(run.waits_s)), default=0.0))
    for run in runs:
        steps = max(1, len(run.waits_s) - 1)
        axis.plot(run.waits_s / size, [100 * i / steps for i in range(len(run.waits_s))], linewidth=1.2)
    axis.set_title("Jobs that waited no longer than this (%)")
    axis.set_xlabel(f"waiting time, {unit}")
    axis.set_xlim(0, None)
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)


def _unit(longest_s: float) -> tuple[str, float]:
    return next(((name, size) for name, size in _UNITS if longest_s >= 3 * size), _UNITS[-1])


def _rows(table: Sequence[Sequence[str]]) -> str:
    lines = []
    for index, row in enumerate(table):
        tag = "td" if index else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "\n".join(lines)


def _matplotlib() -> Any:
    """Return matplotlib; a figure of its own needs no display and no global state."""
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: --plot needs `pip install 'backendai-ray[plots]'`"
        ) from None
    return matplotlib

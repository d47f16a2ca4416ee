"""What commands print: tables for people, JSON for programs; one interface, chosen by ``--json``."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

Row = Mapping[str, Any]


class Output(ABC):
    """Prints results on stdout; what is only said in passing goes to stderr, or nowhere."""

    @abstractmethod
    def table(self, columns: Sequence[tuple[str, str]], rows: Sequence[Row], *, empty: str) -> None:
        """Print rows.

        Args:
            columns: ``(heading, key)`` of what a person sees.
            rows: All that is known, by key.
            empty: What to say when there are none.
        """

    @abstractmethod
    def record(self, record: Row, shown: Sequence[tuple[str, str]]) -> None:
        """Print one thing: ``shown`` is ``(label, text)`` for people."""

    @abstractmethod
    def done(self, sentence: str, record: Row) -> None:
        """Say that something was done."""


class TableOutput(Output):
    """For people."""

    def table(self, columns: Sequence[tuple[str, str]], rows: Sequence[Row], *, empty: str) -> None:
        if not rows:
            click.echo(empty, err=True)
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading, _ in columns:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for _, key in columns))
        console().print(table)

    def record(self, record: Row, shown: Sequence[tuple[str, str]]) -> None:
        width = max((len(label) for label, _ in shown), default=0)
        for label, text in shown:
            click.echo(f"{click.style(label.ljust(width), bold=True)}  {text}")

    def done(self, sentence: str, record: Row) -> None:
        click.echo(sentence)


class JsonOutput(Output):
    """For programs: one JSON value a command."""

    def table(self, columns: Sequence[tuple[str, str]], rows: Sequence[Row], *, empty: str) -> None:
        print_json(list(rows))

    def record(self, record: Row, shown: Sequence[tuple[str, str]]) -> None:
        print_json(record)

    def done(self, sentence: str, record: Row) -> None:
        print_json(record)


def output_for(as_json: bool) -> Output:
    """Return the output that was asked for."""
    return JsonOutput() if as_json else TableOutput()


def print_json(value: object) -> None:
    """Print a JSON value on stdout."""
    click.echo(json.dumps(value, default=str, ensure_ascii=False, indent=None))


def console() -> Any:
    """Return where tables go: as wide as the terminal, and never cut when there is none."""
    import sys

    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, markup=False, width=None if is_terminal else 200, soft_wrap=not is_terminal)


def ago(moment: datetime | None) -> str:
    """Return how long ago that was, in its largest units."""
    if moment is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            rest, smaller = {"d": (3600, "h"), "h": (60, "m"), "m": (1, "s")}[unit]
            return f"{seconds // size}{unit}{seconds % size // rest}{smaller}"
    return f"{seconds}s"


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={amount}" for name, amount in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)

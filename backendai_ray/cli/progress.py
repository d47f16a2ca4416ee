"""What is shown while one waits: on stderr, and only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backendai_ray.client import SessionInfo


@contextmanager
def start_progress() -> Iterator[Callable[[SessionInfo], None]]:
    """Show a starting session's status and why it is in it."""
    if not sys.stderr.isatty():
        yield lambda info: None
        return
    from rich.console import Console

    status = Console(stderr=True).status("asking for a session …")

    def show(info: SessionInfo) -> None:
        why = info.message or info.reason
        status.update(f"{info.name}: {info.status}{f' – {why}' if why else ''}")

    with status:
        yield show


@contextmanager
def transfer_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a transfer is."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of something are done, and how long the rest will take."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

"""What is shown while one waits: on stderr, and only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


def transfer_progress(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show how far a transfer is: bytes done of bytes in all, 0 while that is not known."""
    return _bar(what, "DownloadColumn", "TransferSpeedColumn")


def counting(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show how many of something are done, and how long the rest will take."""
    return _bar(what, "MofNCompleteColumn", "TimeRemainingColumn")


@contextmanager
def _bar(what: str, *columns: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; ``columns`` name rich's, which is loaded only where a person looks."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    shown = (progress.TextColumn("{task.description}"), progress.BarColumn())
    more = (getattr(progress, name)() for name in columns)
    with progress.Progress(*shown, *more, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)

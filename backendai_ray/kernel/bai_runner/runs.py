"""The runs a runner knows: one active, a bounded queue, and the ids of those that have ended."""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]
from time import monotonic

from .records import RunBuffer

MAX_QUEUED = 16
MAX_REMEMBERED = 4096
"""Ended run ids that are known, so that a repeated request does not run again."""
MAX_KEPT_OUTPUTS = 64
MAX_KEPT_BYTES = 1 << 25
"""Bytes of output kept over all ended runs; the oldest goes first."""

QUEUED = "queued"
ACTIVE = "active"
ENDED = "ended"

MYPY = False
if MYPY:
    from collections.abc import Callable, Mapping
    from typing import Any


class QueueFull(Exception):
    """As many runs as allowed are waiting."""


class Run:
    """One request to execute something."""

    def __init__(self, run_id: str, mode: str, code: str, options: Mapping[str, str], limit: int) -> None:
        self.id = run_id
        self.mode = mode
        self.code = code
        self.options = options
        self.buffer = RunBuffer(limit)
        self.state = QUEUED
        self.status = "finished"
        """How it ended: ``finished`` or ``exec-timeout``."""
        self.exit_code = 0
        self.waiting_input = False
        self.password = False
        self.interrupt: Callable[[], None] | None = None
        """Replaces the interrupt of the main thread, e.g. by a signal to a child's process group."""
        self.deadline: float | None = None
        """Monotonic time at which ``on_deadline`` is due; it gets the process group and returns the next time."""
        self.group = 0
        self.on_deadline: Callable[[int], float | None] | None = None
        self.log: Any = None
        """A file that gets a copy of the output."""
        self.last_read_at = monotonic()
        self.polls: list[Any] = []
        """Polls that wait for something to tell (see ``server``)."""
        self.flush_at: float | None = None
        self.answered_at = 0.0


class RunTable:
    """Not locked: the caller holds the sink's lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, Run] = {}
        self._queue: deque[Run] = deque()
        self._ended: deque[Run] = deque()
        """Oldest first; those with output kept are the last MAX_KEPT_OUTPUTS."""
        self.active: Run | None = None

    def get(self, run_id: str) -> Run | None:
        return self._known.get(run_id)

    def add(self, run_id: str, mode: str, code: str, options: Mapping[str, str]) -> Run:
        """Queue a new run.

        Raises:
            QueueFull: there are MAX_QUEUED waiting.
        """
        if len(self._queue) >= MAX_QUEUED:
            raise QueueFull
        run = self._known[run_id] = Run(run_id, mode, code, options, self._limit)
        self._queue.append(run)
        return run

    def start_next(self) -> Run | None:
        """Make the oldest queued run the active one."""
        if not self._queue:
            return None
        run: Run = self._queue.popleft()
        self.active = run
        run.state = ACTIVE
        return run

    def end_active(self, exit_code: int) -> None:
        run = self.active
        if run is None:
            return
        run.exit_code = exit_code
        run.state = ENDED
        run.waiting_input = False
        run.code = ""
        run.interrupt = run.deadline = run.on_deadline = None
        self.active = None
        self._ended.append(run)
        self._forget_old()

    def cancel_queued(self) -> None:
        """End every queued run without running it."""
        while self._queue:
            run = self._queue.popleft()
            run.state, run.exit_code = ENDED, 130
            self._ended.append(run)

    def summary(self) -> tuple[str, list[str], list[str]]:
        """The active run's id (or nothing), the queued ids, the latest ended ids."""
        recent = list(self._ended)[-MAX_KEPT_OUTPUTS:]
        return self.active.id if self.active else "", [run.id for run in self._queue], [run.id for run in recent]

    def _forget_old(self) -> None:
        kept_bytes = 0
        for age, run in enumerate(reversed(self._ended)):
            kept_bytes += run.buffer.size
            if age and (age >= MAX_KEPT_OUTPUTS or kept_bytes > MAX_KEPT_BYTES):
                kept_bytes -= run.buffer.size
                run.buffer.discard()
            if age > MAX_KEPT_OUTPUTS:
                break
        while len(self._ended) > MAX_REMEMBERED:
            del self._known[self._ended.popleft().id]

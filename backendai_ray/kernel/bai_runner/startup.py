"""The startup command: a batch run whose output and end are kept in files too, so that they survive everybody."""

from __future__ import annotations

import os
from signal import SIGKILL, SIGTERM
from time import monotonic, time

from .batch import run_command, signal_group
from .records import encode
from .runner import EXEC_TIMEOUT

LOG_NAME = "startup.log"
RESULT_NAME = "result.json"
MAX_LOG_BYTES = 1 << 24
"""A full log becomes ``startup.log.1`` and a new one begins: at least this much of the latest output is there."""
TERM_GRACE_S = 5.0
TIMEOUT_EXIT_CODE = 124

MYPY = False
if MYPY:
    from .runner import Runner
    from .runs import Run


def execute_startup(runner: Runner, run: Run) -> int:
    """Run the command to its end or its timeout; the result is on disk before anybody is told."""
    run.log = BoundedLog(os.path.join(runner.run_dir, LOG_NAME))
    run.last_read_at = 0.0  # nobody needs to follow it: it must not wait for a reader before one comes
    timeout_s = float(run.options.get("timeout") or 0)
    if timeout_s > 0:
        run.deadline = monotonic() + timeout_s
        run.on_deadline = lambda group: _end_group(run, group)
        runner.server.wake()
    started_at = time()
    try:
        exit_code = run_command(runner, run, run.code)
    except OSError as error:
        runner.sink.write("e", "the startup command cannot be started: %s\n" % error)
        exit_code = 127
    if run.status == EXEC_TIMEOUT:
        exit_code = TIMEOUT_EXIT_CODE
    runner.sink.drain_pipes()
    _write_result(runner, run, exit_code, started_at)
    run.log.close()
    return exit_code


def _end_group(run: Run, group: int) -> float | None:
    """End an overdue process group: politely first. Returns when to come again."""
    first = run.status != EXEC_TIMEOUT
    run.status = EXEC_TIMEOUT
    signal_group(group, SIGTERM if first else SIGKILL)
    return monotonic() + TERM_GRACE_S if first else None


def _write_result(runner: Runner, run: Run, exit_code: int, started_at: float) -> None:
    path = os.path.join(runner.run_dir, RESULT_NAME)
    text = '{"run_id": "startup", "status": "%s", "exit_code": %d, "started_at": %.6f, "ended_at": %.6f}\n'
    try:
        with open(path + ".new", "w") as file:
            file.write(text % (run.status, exit_code, started_at, time()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
    except OSError as error:
        runner.report("runner.result_not_written", error)


class BoundedLog:
    """An append-only file that starts anew when it is full, keeping one predecessor. A full disk loses output."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, text: str) -> None:
        if self._fd < 0:
            return
        try:
            if self._size >= MAX_LOG_BYTES:
                os.replace(self._path, self._path + ".1")
                os.close(self._fd)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._size = 0
            self._size += os.write(self._fd, encode(text))
        except OSError:
            pass  # no room on the disk: the program goes on, its output is still in the run's buffer

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

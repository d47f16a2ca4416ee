"""The shell runtime: query mode for images whose language is the shell, with its state kept between runs.

One shell lives in the background. It reads the paths of cells from a pipe, sources them in itself and writes their
exit codes to another. Under bash an interrupt makes every level of the cell return; a plain sh is ended by it and
started again in the same directory, without its variables.
"""

from __future__ import annotations

import os
from signal import SIGINT, SIGKILL

from .batch import signal_group

INTERRUPTED_EXIT_CODE = 130
BASH_PATHS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash")
EXIT_CHECK_S = 0.05

BOOT = """exec 8<&0 9>"/dev/fd/$1" </dev/null
set --
%s
while IFS= read -r __bai_cell <&8; do
  command . "$__bai_cell"
  { __bai_code=$?; trap - DEBUG; } 2>/dev/null
  echo "$__bai_code" >&9
done
"""
BASH_ONLY = """set -o functrace
trap 'trap "return 130 2>/dev/null" DEBUG' INT"""

MYPY = False
if MYPY:
    from typing import Any

    from .runner import Runner
    from .runs import Run


class ShellRuntime:
    """Keeps the shell; one cell at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._cell = os.path.join(runner.run_dir, "cell.sh")
        self._shell: Any = None
        self._directory = runner.workdir or os.getcwd()
        self._reports = -1
        self._interrupts = 0

    def execute(self, run: Run) -> int:
        """Source one cell; returns the exit code of its last command, or of its ``exit``."""
        if self._shell is None or self._shell.poll() is not None:
            self._start()
        with open(self._cell, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(run.code + "\n")
        self._interrupts = 0
        run.interrupt = self._interrupt
        if self._runner.sink.interrupted:
            return INTERRUPTED_EXIT_CODE
        self._shell.stdin.write(os.fsencode(self._cell) + b"\n")
        self._shell.stdin.flush()
        exit_code = self._wait()
        run.interrupt = None
        return exit_code

    def _wait(self) -> int:
        from select import select

        shell = self._shell
        while not select([self._reports], [], [], EXIT_CHECK_S)[0]:
            # A process that the shell left behind may hold the pipe, which then does not tell the shell's end.
            if shell.poll() is not None and not select([self._reports], [], [], 0)[0]:
                return self._note_end(shell)
        report = os.read(self._reports, 64)
        if not report:
            return self._note_end(shell)
        try:
            self._directory = os.readlink("/proc/%d/cwd" % shell.pid)
        except OSError:
            pass  # it ended just now; it starts again where it was before
        return int(report)

    def _note_end(self, shell: Any) -> int:
        self._shell = None
        returncode = int(shell.wait())
        self._close_pipes(shell)
        self._runner.sessions.discard(shell.pid)
        if returncode >= 0:
            return returncode
        self._runner.sink.write("e", "the shell was ended by a signal; it starts again without its variables\n")
        return INTERRUPTED_EXIT_CODE if returncode == -SIGINT else 128 - returncode

    def _start(self) -> None:
        import subprocess

        bash = next((path for path in BASH_PATHS if os.path.exists(path)), "")
        self._reports, write_end = os.pipe()
        pipes = self._runner.sink.capture_ends()
        directory = self._directory if os.path.isdir(self._directory) else self._runner.workdir
        self._shell = subprocess.Popen(
            [bash or "/bin/sh", "-c", BOOT % (BASH_ONLY if bash else ""), "sh", str(write_end)],
            cwd=directory or None,
            stdin=subprocess.PIPE,
            stdout=pipes[0],
            stderr=pipes[1],
            pass_fds=(write_end,),
            start_new_session=True,
        )
        os.close(write_end)
        self._runner.sessions.add(self._shell.pid)

    def _close_pipes(self, shell: Any) -> None:
        os.close(self._reports)
        try:
            shell.stdin.close()
        except OSError:
            pass  # the other end is gone, as expected

    def _interrupt(self) -> None:
        shell = self._shell
        if shell is not None:
            self._interrupts += 1
            signal_group(shell.pid, SIGKILL if self._interrupts > 2 else SIGINT)

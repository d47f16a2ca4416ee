"""Batch mode: the clean, build and exec steps, each a shell command in the working directory."""

from __future__ import annotations

import os
import sys
from signal import SIGINT, SIGKILL

from .records import STDERR

MYPY = False
if MYPY:
    from .runner import Runner
    from .runs import Run

NO_MAIN_PROGRAM = 127


def execute_steps(runner: Runner, run: Run) -> int:
    """Run the steps that the options name; a failed build is not executed. Returns the last exit code."""
    clean, build, command = (run.options.get(name, "") for name in ("clean", "build", "exec"))
    if clean and clean != "*":
        runner.end_step(run, "clean-finished", run_command(runner, run, clean))
    if build:
        exit_code = _build(runner, run, build)
        runner.end_step(run, "build-finished", exit_code)
        if exit_code:
            return exit_code
    if not command:
        return 0
    if command == "*":
        if not os.path.isfile(os.path.join(runner.workdir, "main.py")):
            runner.sink.write(STDERR, "cannot find the main program (main.py) in the working directory\n")
            return NO_MAIN_PROGRAM
        command = quote(sys.executable) + " main.py"
    return run_command(runner, run, command)


def _build(runner: Runner, run: Run, build: str) -> int:
    if build == "*":
        if not os.path.isfile(os.path.join(runner.workdir, "setup.py")):
            return 0
        build = quote(sys.executable) + " setup.py develop"
    return run_command(runner, run, build)


def run_command(runner: Runner, run: Run, command: str) -> int:
    """Run a shell command in its own process group with its output captured; returns its exit code (128+n: killed).

    An interrupt goes to the group: SIGINT first, SIGKILL from the third on.
    """
    import subprocess

    pipes = runner.sink.capture_ends()
    child = subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=runner.workdir or None,
        stdin=subprocess.DEVNULL,
        stdout=pipes[0],
        stderr=pipes[1],
        start_new_session=True,
    )
    interrupts = [0]

    def interrupt() -> None:
        interrupts[0] += 1
        signal_group(child.pid, SIGKILL if interrupts[0] > 2 else SIGINT)

    run.group = child.pid
    runner.sessions.add(child.pid)
    run.interrupt = interrupt
    if runner.sink.interrupted:  # it came before there was a child
        runner.sink.interrupted = False
        interrupt()
    try:
        returncode = child.wait()
    finally:
        run.interrupt = None
        run.group = 0
        runner.sessions.discard(child.pid)
    return returncode if returncode >= 0 else 128 - returncode


def signal_group(group: int, signum: int) -> None:
    """Signal a process group that may be gone."""
    try:
        os.killpg(group, signum)
    except OSError:
        pass


def kill_session(session: int) -> None:
    """Kill every process that belongs to a session (its shell gave jobs process groups of their own)."""
    signal_group(session, SIGKILL)
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry, "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(entry), SIGKILL)
        except (OSError, ValueError, IndexError):
            pass  # it has ended meanwhile


def quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"

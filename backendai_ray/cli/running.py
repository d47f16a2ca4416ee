"""A run at the terminal: its output as it comes, its questions, Ctrl-C, and its exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from backendai_ray.cli.output import print_json, size_text
from backendai_ray.core.errors import BackendError, BadRequest
from backendai_ray.core.execution import OutputType, RunStatus

if TYPE_CHECKING:
    from backendai_ray.client import InputRequest, OutputChunk, Run, Session

STOPPED_FOR_TIME = 124
KILLED_BY_SIGNAL = 128


def follow(run: Run, session: Session, *, as_json: bool) -> int:
    """Show a run until its end and return the exit code to end with.

    The first Ctrl-C interrupts the program; the second one ends this command.
    """
    with _ctrl_c_interrupts(run.interrupt):
        if as_json:
            result = run.result()
            print_json(
                {
                    "session_id": session.id,
                    "session": session.name,
                    "run_id": result.run_id,
                    "status": result.status,
                    "exit_code": result.exit_code,
                    "stdout": result.stdout,
                    "stderr": result.stderr,
                    "html": result.html,
                    "media": result.media,
                }
            )
        else:
            for chunk in run:
                show(chunk)
    if run.status == RunStatus.EXEC_TIMEOUT:
        return STOPPED_FOR_TIME
    return shell_code(run.exit_code)


def shell_code(exit_code: int | None) -> int:
    """Return an exit code as shells have it: a program that was killed by a signal ends with 128 and its number."""
    if exit_code is None:
        return 0
    return exit_code & 0xFF if exit_code >= 0 else KILLED_BY_SIGNAL - exit_code


def show(chunk: OutputChunk) -> None:
    """Write a piece of output where the program wrote it."""
    if chunk.type == OutputType.STDOUT:
        _write(sys.stdout, chunk.data)
    elif chunk.type in (OutputType.STDERR, OutputType.LOG):
        _write(sys.stderr, chunk.data)
    else:
        kind = chunk.mime or "text/html"
        note = f"[{kind}, {size_text(len(chunk.data))}; `--json` prints it]\n"
        _write(sys.stderr, note)


def ask(request: InputRequest) -> str:
    """Read a line for a program that waits for one; a password without showing it.

    Raises:
        BadRequest: standard input has ended.
    """
    if request.is_password and sys.stdin.isatty():
        return str(click.prompt("", prompt_suffix="", hide_input=True, default="", show_default=False, err=True))
    line = sys.stdin.readline()
    if not line:
        raise BadRequest("the program asks for input, but standard input has ended; it was interrupted")
    return line.rstrip("\n")


def _write(stream: object, text: str) -> None:
    stream.write(text)  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


@contextmanager
def _ctrl_c_interrupts(interrupt: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    pressed = 0

    def handle(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt
        click.echo("^C: interrupting the program (again: end)", err=True)
        threading.Thread(target=_quietly, args=(interrupt,), daemon=True).start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _quietly(interrupt: Callable[[], None]) -> None:
    try:
        interrupt()
    except BackendError as exc:
        click.echo(f"not interrupted: {exc.message}", err=True)

"""``bai run``: a session for one program."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backendai_ray.cli import options
from backendai_ray.cli.logs import follow_log
from backendai_ray.cli.output import print_json
from backendai_ray.cli.progress import start_progress, transfer_progress
from backendai_ray.cli.running import ask, follow, shell_code
from backendai_ray.cli.shell import open_shell
from backendai_ray.core.errors import BackendError

if TYPE_CHECKING:
    from backendai_ray.client import Client, Session

_RUNNERS = {".py": "python3", ".sh": "sh", ".bash": "bash", ".js": "node", ".rb": "ruby", ".R": "Rscript"}


@click.command("run")
@click.argument("image")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("-c", "--code", help="Source text to run in the image's language.")
@click.option("--exec", "exec_", metavar="COMMAND", help="Shell command to run after the files are there.")
@click.option("--build", metavar="COMMAND", help="Shell command to run before.")
@click.option("--rm/--keep", "remove", default=None, help="End the session afterwards (default: if it was made here).")
@click.option("--batch", is_flag=True, help="As a batch session: --exec is its startup command; no files.")
@click.option("--tty", is_flag=True, help="Open a terminal in it.")
@options.creation_options
@options.json_option
def run_command(
    image: str,
    files: Sequence[Path],
    code: str | None,
    exec_: str | None,
    build: str | None,
    remove: bool | None,
    batch: bool,
    tty: bool,
    as_json: bool,
    **creation: Any,
) -> None:
    """Start a session of IMAGE, copy FILES into it, run a program, show its output, and end the session.

    The program is -c CODE, --exec COMMAND, or the first of FILES (train.py: python3 train.py). Its exit code is the
    exit code of bai; 125 means that bai itself failed. The first Ctrl-C interrupts the program, the second ends the
    session too. With a name (-t) a live session of that name is used, and kept.

    \b
    bai run python -c 'print("hello")'
    bai run python train.py data.csv -r cpu=2 -r mem=2g
    bai run python src data --build 'pip install -r src/requirements.txt' --exec 'python src/main.py data'
    bai run python --batch --exec 'python -c "print(42)"'
    bai run python --tty
    """
    chosen = [name for name, given in (("-c", code), ("--exec", exec_), ("--tty", tty)) if given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} do not go together.")
    if batch and (files or not exec_ or build or tty):
        raise click.UsageError("--batch takes --exec COMMAND, and neither FILES, --build nor --tty.")
    if not chosen:
        exec_ = default_command(files)
    arguments = options.creation_arguments(**creation)
    with options.make_client() as client:
        if batch:
            assert exec_ is not None
            code_to_end_with = _run_batch(client, image, exec_, arguments, keep=remove is False, as_json=as_json)
        else:
            code_to_end_with = _run_here(
                client, image, files, arguments, code=code, exec_=exec_, build=build, remove=remove, as_json=as_json
            )
    sys.exit(code_to_end_with)


def default_command(files: Sequence[Path]) -> str:
    """Return how to run the first file.

    Raises:
        click.UsageError: that is not known.
    """
    runner = _RUNNERS.get(files[0].suffix) if files and files[0].is_file() else None
    if runner is None:
        raise click.UsageError("Say what to run: -c CODE, --exec COMMAND, --tty, or a program such as main.py first.")
    return f"{runner} {shlex.quote(files[0].name)}"


def _run_here(
    client: Client,
    image: str,
    files: Sequence[Path],
    arguments: dict[str, Any],
    *,
    code: str | None,
    exec_: str | None,
    build: str | None,
    remove: bool | None,
    as_json: bool,
) -> int:
    with start_progress() as show:
        session = client.sessions.create(image, **arguments, reuse=arguments["name"] is not None, on_progress=show)
    removed = session.created if remove is None else remove
    is_forced = True
    try:
        if files:
            with transfer_progress("uploading") as report:
                session.upload(list(files), on_progress=report)
        if code is not None:
            exit_code = follow(session.stream(code, input=ask), session, as_json=as_json)
        elif exec_ is not None:
            run = session.stream_batch(exec=exec_, build=build, input=ask)
            exit_code = follow(run, session, as_json=as_json)
        else:
            exit_code = open_shell(client.config, session.id)
        is_forced = False
    finally:
        _leave(session, removed=removed, forced=is_forced)
    return exit_code


def _leave(session: Session, *, removed: bool, forced: bool) -> None:
    """End the session, or say that it stays; what went wrong before is never hidden by what goes wrong here."""
    if not removed:
        click.echo(f"The session {session.name} stays; end it with: bai rm {session.name}", err=True)
        return
    try:
        session.destroy(forced=forced)
    except BackendError as exc:
        click.echo(f"The session {session.name} was not ended: {exc.message}", err=True)


def _run_batch(
    client: Client, image: str, command: str, arguments: dict[str, Any], *, keep: bool, as_json: bool
) -> int:
    arguments["type"] = "batch"
    arguments["startup_command"] = command
    with start_progress() as show:
        session = client.sessions.create(image, **arguments, on_progress=show)
    try:
        if as_json:
            info = session.wait()
            print_json({**info.model_dump(mode="json"), "logs": session.logs()})
        else:
            info = follow_log(session)
    except BaseException:
        if not keep:
            _leave(session, removed=True, forced=True)
        raise
    if not as_json:
        how = f"{info.status}: {info.message or info.reason}"
        click.echo(f"The session {session.name} ended ({how}).", err=True)
    return shell_code(info.exit_code) if info.exit_code is not None else int(info.result != "success")

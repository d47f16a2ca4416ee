"""Commands that run code in a session that is there."""

from __future__ import annotations

import sys

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for
from backendai_ray.cli.running import ask, follow


@click.command("exec")
@options.session_argument
@click.argument("file", required=False)
@click.option("-c", "--code", help="Source text to run in the image's language.")
@click.option("--shell", "command", metavar="COMMAND", help="Shell command to run in the session's folder.")
@options.json_option
def exec_command(session: str, file: str | None, code: str | None, command: str | None, as_json: bool) -> None:
    """Run code in SESSION: -c CODE, a local FILE with source text (- for standard input), or --shell COMMAND.

    What code defines stays for the next one. The exit code is the program's; 125 means that bai itself failed.

    \b
    bai exec work -c 'x = 41'
    bai exec work -c 'print(x + 1)'
    bai exec work analysis.py
    bai exec work --shell 'ls -l'
    """
    if sum(given is not None for given in (file, code, command)) != 1:
        raise click.UsageError("Give one of -c CODE, FILE or --shell COMMAND.")
    if file is not None:
        code = options.read_text(file)
    with options.make_client() as client:
        handle = client.sessions.get(session)
        answer = None if file == "-" else ask
        if command is not None:
            run = handle.stream_batch(exec=command, input=answer)
        else:
            run = handle.stream(code or "", input=answer)
        exit_code = follow(run, handle, as_json=as_json)
    sys.exit(exit_code)


@click.command("interrupt")
@options.session_argument
@options.json_option
def interrupt_command(session: str, as_json: bool) -> None:
    """Interrupt what SESSION runs, as Ctrl-C does; the session and its state stay.

    \b
    bai interrupt work
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        handle.interrupt()
    output_for(as_json).done(f"{handle.name} was interrupted.", {"session_id": handle.id})


@click.command("complete")
@options.session_argument
@click.argument("code")
@click.option("--cursor", type=click.IntRange(min=0), help="Character offset into CODE; default: its end.")
@options.json_option
def complete_command(session: str, code: str, cursor: int | None, as_json: bool) -> None:
    """Show what could stand at the end of CODE (or at the cursor).

    \b
    bai complete work 'import os; os.pa'
    """
    with options.make_client() as client:
        found = client.sessions.get(session).complete(code, cursor)
    rows = [{"completion": text} for text in found]
    if as_json:
        output_for(True).table((), rows, empty="")
    else:
        click.echo("\n".join(found), nl=bool(found))

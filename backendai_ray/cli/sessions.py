"""Commands about sessions as a whole: start, list, look at, wait for, rename, restart, end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from backendai_ray.cli import options
from backendai_ray.cli.logs import follow_log
from backendai_ray.cli.output import ago, output_for
from backendai_ray.cli.progress import start_progress
from backendai_ray.cli.running import shell_code
from backendai_ray.core.errors import BackendError
from backendai_ray.core.sessions import SessionResult, Status

if TYPE_CHECKING:
    from backendai_ray.client import SessionInfo


@click.command("start")
@click.argument("image")
@options.batch_options
@click.option("--no-wait", is_flag=True, help="Return when it is queued.")
@options.creation_options
@options.json_option
def start_command(
    image: str,
    command: str | None,
    batch_timeout: float | None,
    starts_at: str | None,
    no_wait: bool,
    as_json: bool,
    **creation: Any,
) -> None:
    """Start a session of IMAGE and leave it running.

    \b
    bai start python -t work -r cpu=2 -r mem=1g
    bai start python --cluster-size 2 -t gang
    bai start python --batch 'python -c "print(42)"'
    """
    arguments = options.creation_arguments(**creation)
    arguments |= options.batch_arguments(command, batch_timeout, starts_at)
    with options.make_client() as client, start_progress() as show:
        session = client.sessions.create(image, **arguments, wait=not no_wait, on_progress=show)
        info = session.info()
    output_for(as_json).done(f"{info.name}  {info.status}  {info.id}", info.model_dump(mode="json"))


@click.command("ps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Those that have ended too.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@options.json_option
def ps_command(show_all: bool, limit: int, as_json: bool) -> None:
    """List your sessions, newest first.

    \b
    bai ps
    bai ps -a -n 200 --json
    """
    with options.make_client() as client:
        page = client.sessions.list(statuses=list(Status) if show_all else None, limit=limit)
    columns = (
        ("NAME", "name"),
        ("ID", "short_id"),
        ("TYPE", "type"),
        ("STATUS", "status"),
        ("IMAGE", "image"),
        ("RESOURCES", "resources"),
        ("NODES", "nodes"),
        ("AGE", "age"),
        ("WHY", "why"),
    )
    out = output_for(as_json)
    out.table(columns, [_row(info) for info in page.items], empty="No sessions. Start one with: bai start python")
    if page.total > len(page.items) and not as_json:
        click.echo(f"{page.total - len(page.items)} more; see them with -n.", err=True)


@click.command("info")
@options.session_argument
@options.json_option
def info_command(session: str, as_json: bool) -> None:
    """Show where SESSION (a name, an id or its beginning) stands.

    \b
    bai info my-session
    """
    with options.make_client() as client:
        info = client.sessions.get(session).info()
    shown = [
        ("Name", info.name),
        ("Id", info.id),
        ("Type", info.type),
        ("Image", info.image),
        ("Status", info.status + (f" – {info.message or info.reason}" if info.message or info.reason else "")),
        ("Resources", " ".join(f"{slot}={amount}" for slot, amount in info.resources.items())),
        ("Created", f"{info.created_at:%Y-%m-%d %H:%M:%S} UTC" if info.created_at else ""),
    ]
    if info.is_terminal:
        shown.append(("Result", f"{info.result}, exit code {info.exit_code}"))
    shown.extend((k.hostname, f"{k.status} on {k.agent_id or 'no node yet'}") for k in info.kernels)
    output_for(as_json).record(info.model_dump(mode="json"), shown)


@click.command("logs")
@options.session_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the session has ended.")
@options.json_option
def logs_command(session: str, follow: bool, as_json: bool) -> None:
    """Print the log of SESSION, also after its end.

    \b
    bai logs -f my-batch
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        if follow and not as_json:
            follow_log(handle)
            return
        if follow:
            handle.wait()
        log = handle.logs()
    if as_json:
        output_for(True).record({"session_id": handle.id, "logs": log}, ())
    else:
        click.echo(log, nl=False)


@click.command("wait")
@options.session_argument
@click.option(
    "--for", "status", type=click.Choice([s.value for s in Status], case_sensitive=False), help="Wait for this status."
)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; exit code 6 after that.")
@options.json_option
def wait_command(session: str, status: str | None, timeout: float | None, as_json: bool) -> None:
    """Wait until SESSION has ended (or has the status given).

    At its end the exit code is the one of its program, or 1 if it failed otherwise.

    \b
    bai wait my-batch --timeout 600 && echo well done
    bai wait my-session --for RUNNING
    """
    with options.make_client() as client, start_progress() as show:
        handle = client.sessions.get(session)
        info = handle.wait(*([status] if status else []), timeout=timeout, on_progress=show)
    sentence = f"{info.name}  {info.status}  {info.message or info.reason}"
    output_for(as_json).done(sentence, info.model_dump(mode="json"))
    if info.is_terminal and status is None:
        failed = info.result == SessionResult.FAILURE or info.status == Status.ERROR
        sys.exit(shell_code(info.exit_code) or int(failed))


@click.command("rename")
@options.session_argument
@click.argument("name")
@options.json_option
def rename_command(session: str, name: str, as_json: bool) -> None:
    """Give SESSION another NAME.

    \b
    bai rename interactive-3f9a2c01 work
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        handle.rename(name)
    output_for(as_json).done(f"{session} is now {name}.", {"session_id": handle.id, "name": name})


@click.command("restart")
@options.session_argument
@options.json_option
def restart_command(session: str, as_json: bool) -> None:
    """Give SESSION fresh containers; its files stay, its programs do not.

    \b
    bai restart work
    """
    with options.make_client() as client, start_progress() as show:
        handle = client.sessions.get(session)
        handle.restart()
        info = handle.wait(Status.RUNNING, on_progress=show)
    output_for(as_json).done(f"{info.name} runs again.", info.model_dump(mode="json"))


@click.command("rm")
@click.argument("sessions", metavar="[SESSION]...", nargs=-1)
@click.option("-f", "--forced", is_flag=True, help="Kill at once.")
@click.option("--recursive", is_flag=True, help="The sessions that depend on it too.")
@click.option("--all", "all_", is_flag=True, help="All of your sessions.")
@click.option("--no-wait", is_flag=True, help="Do not wait until everything is taken back.")
@options.json_option
def rm_command(
    sessions: Sequence[str], forced: bool, recursive: bool, all_: bool, no_wait: bool, as_json: bool
) -> None:
    """End one SESSION or several.

    \b
    bai rm work
    bai rm --all -f
    """
    if bool(sessions) == all_:
        raise click.UsageError("Name the sessions to end, or give --all.")
    ended, failures = [], []
    with options.make_client() as client:
        names = [info.id for info in client.sessions.iterate()] if all_ else list(sessions)
        for name in names:
            try:
                handle = client.sessions.get(name)
                handle.destroy(forced=forced, recursive=recursive, wait=False)
                ended.append(handle)
            except BackendError as exc:
                failures.append(exc)
                click.secho(f"Error: {name}: {exc.message}", fg="red", err=True)
        if not no_wait:
            for handle in ended:
                handle.wait()
    names_ended = [handle.name for handle in ended]
    sentence = f"Ended: {', '.join(names_ended)}" if names_ended else "Nothing was ended."
    output_for(as_json).done(sentence, {"ended": [handle.id for handle in ended]})
    if failures:
        from backendai_ray.cli.main import exit_code_of

        sys.exit(exit_code_of(failures[0]))


def _row(info: SessionInfo) -> dict[str, Any]:
    return {
        **info.model_dump(mode="json"),
        "short_id": info.id[:8],
        "nodes": info.where,
        "age": ago(info.created_at),
        "why": "" if info.is_running else info.message or info.reason,
    }

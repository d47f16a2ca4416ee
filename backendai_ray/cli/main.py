"""The entry point: commands are imported when they are used, errors become one line and an exit code.

Exit codes, the same for every command:

    0    done
    1    it failed; the line on stderr says why
    2    wrong usage, or a value that cannot be used
    3    there is no such session, file or node
    4    the key is wrong or may not do this
    5    the cluster, or a part of it, cannot be reached
    6    it took longer than the time given
    130  ended by Ctrl-C

`bai run` and `bai exec` end with the exit code of the program (124 when it was stopped for time), and with 125 where
bai itself failed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from backendai_ray.core.errors import (
    BackendError,
    BadRequest,
    Forbidden,
    NotFound,
    RequestTimeout,
    Unauthorized,
    Unavailable,
)

OWN_FAILURE = 125
"""What `bai run` and `bai exec` end with when the failure is not the program's."""

_EXIT_CODES: Mapping[type[BackendError], int] = {
    BadRequest: 2,
    NotFound: 3,
    Unauthorized: 4,
    Forbidden: 4,
    Unavailable: 5,
    RequestTimeout: 6,
}
_RUNS_PROGRAMS = frozenset({"run", "exec"})

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("backendai_ray.cli.run", "Start a session, run a program in it, and end it."),
    "start": ("backendai_ray.cli.sessions", "Start a session and leave it running."),
    "ps": ("backendai_ray.cli.sessions", "List sessions."),
    "info": ("backendai_ray.cli.sessions", "Show where a session stands."),
    "exec": ("backendai_ray.cli.code", "Run code in a session; its state stays."),
    "shell": ("backendai_ray.cli.shell", "Open a terminal in a session."),
    "complete": ("backendai_ray.cli.code", "Show what could stand at the end of a piece of code."),
    "interrupt": ("backendai_ray.cli.code", "Interrupt what a session runs."),
    "logs": ("backendai_ray.cli.sessions", "Print a session's log, also after its end."),
    "upload": ("backendai_ray.cli.files", "Copy files into a session."),
    "download": ("backendai_ray.cli.files", "Copy files out of a session."),
    "ls": ("backendai_ray.cli.files", "List files in a session."),
    "wait": ("backendai_ray.cli.sessions", "Wait until a session runs or has ended."),
    "explain": ("backendai_ray.cli.scheduling", "Say why a session waits, and when it may start."),
    "schedule": ("backendai_ray.cli.scheduling", "Rehearse where a session would go."),
    "consolidate": ("backendai_ray.cli.moves", "Find moves of running sessions that let one start."),
    "history": ("backendai_ray.cli.inspection", "Show every status a session has had, and why."),
    "dependencies": ("backendai_ray.cli.inspection", "Show what a session depends on."),
    "events": ("backendai_ray.cli.inspection", "Follow what happens to sessions."),
    "nodes": ("backendai_ray.cli.inspection", "List the nodes and what is free on them."),
    "runtimes": ("backendai_ray.cli.inspection", "List what can run code in an image."),
    "groups": ("backendai_ray.cli.inspection", "List the resource groups and how they are scheduled."),
    "quota": ("backendai_ray.cli.quotas", "List, set and remove quotas."),
    "simulate": ("backendai_ray.cli.simulation", "Replay a trace under scheduling policies, in virtual time."),
    "rename": ("backendai_ray.cli.sessions", "Give a session another name."),
    "restart": ("backendai_ray.cli.sessions", "Give a session fresh containers; its files stay."),
    "rm": ("backendai_ray.cli.sessions", "End sessions."),
    "node": ("backendai_ray.cli.node", "Look at one node."),
    "up": ("backendai_ray.cli.cluster", "Start a cluster on this machine."),
    "down": ("backendai_ray.cli.cluster", "End the cluster on this machine."),
    "env": ("backendai_ray.cli.cluster", "Print the settings that clients need, for a shell."),
    "status": ("backendai_ray.cli.cluster", "Say whether a cluster runs on this machine."),
    "deploy": ("backendai_ray.cli.cluster", "Make the actors on a Ray cluster that runs already."),
    "completion": ("backendai_ray.cli.completion", "Print the script that completes commands in a shell."),
}
"""Every command: the module that has it, as a function of that name or with ``_command`` after it, and its help."""


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command = getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which ones are near."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Begin with:  bai up --detach && eval "$(bai env)" && bai run python -c \'print("hello")\'',
)
@click.option("--debug", is_flag=True, help="On an error, print the stack trace too.")
@click.version_option(package_name="backendai-ray", prog_name="bai")
def cli(debug: bool) -> None:
    """Sessions in containers, scheduled, executed and taken back."""


def main(args: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    arguments = sys.argv[1:] if args is None else args
    command = next((a for a in arguments if not a.startswith("-")), "")
    try:
        code = cli.main(args=arguments, prog_name="bai", standalone_mode=False)
    except Exception as exc:  # noqa: BLE001 - the one place where errors end: as a line and an exit code
        code = _tell(exc, arguments, command)
    except KeyboardInterrupt:
        code = 130
    _flush()
    sys.exit(code if isinstance(code, int) else 0)


def exit_code_of(error: BackendError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)


def _tell(exc: Exception, arguments: list[str], command: str) -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(exc)
    if isinstance(exc, BrokenPipeError):
        # Whoever read our output has left; Python would complain of it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if isinstance(exc, click.exceptions.Abort):
        return 130
    if isinstance(exc, click.UsageError):
        exc.show()
        return exc.exit_code
    code = exit_code_of(exc) if isinstance(exc, BackendError) else 1
    click.secho(f"Error: {_sentence(exc)}", fg="red", err=True)
    return OWN_FAILURE if command in _RUNS_PROGRAMS else code


def _sentence(exc: Exception) -> str:
    if isinstance(exc, BackendError):
        request_id = exc.details.get("request_id")
        is_ours = exc.http_status >= 500 and request_id
        return exc.message + (f" (request {request_id})" if is_ours and str(request_id) not in exc.message else "")
    if isinstance(exc, click.ClickException):
        return exc.format_message()
    if isinstance(exc, OSError):
        return f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
    return f"{type(exc).__name__}: {exc} (see it in full with: bai --debug …)"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            pass  # nobody reads it any more


def command_names() -> Mapping[str, Any]:
    """Return every command's name with where it lives."""
    return _COMMANDS

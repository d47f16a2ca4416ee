"""What several commands share: options, their meaning, and the client."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from backendai_ray.client import Client

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
session_argument = click.argument("session", metavar="SESSION")


def make_client() -> Client:
    """Return a client with the settings of the environment."""
    from backendai_ray.client import Client

    return Client()


def batch_options(command: _F) -> _F:
    """Add the options of commands that leave a session to itself."""
    options = (
        click.option("--batch", "command", metavar="COMMAND", help="Make a batch session, which runs this and ends."),
        click.option("--batch-timeout", type=click.FloatRange(min=0), help="Seconds that the command may take."),
        click.option("--starts-at", help="Not before this date (ISO 8601), or so long from now, such as 2h."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def batch_arguments(command: str | None, batch_timeout: float | None, starts_at: str | None) -> dict[str, Any]:
    """Turn the options of :func:`batch_options` into arguments of ``sessions.create``."""
    arguments: dict[str, Any] = {"batch_timeout_s": batch_timeout, "starts_at": starts_at}
    if command is not None:
        arguments |= {"type": "batch", "startup_command": command}
    return arguments


def creation_options(command: _F) -> _F:
    """Add the options of commands that make a session."""
    options = (
        click.option("-t", "--name", help="The session's name; made up if not given."),
        click.option(
            "-r",
            "--resource",
            "resources",
            multiple=True,
            metavar="SLOT=AMOUNT",
            help="What each container gets, such as cpu=1, mem=512m or cuda.device=1. Repeatable.",
        ),
        click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="Set a variable. Repeatable."),
        click.option("--cluster-size", type=click.IntRange(min=1), default=1, help="How many containers."),
        click.option(
            "--cluster-mode",
            type=click.Choice(["single-node", "multi-node"]),
            default="single-node",
            show_default=True,
            help="Whether a gang's containers must share a node.",
        ),
        click.option("--bootstrap", help="A shell script to run in each container first."),
        click.option(
            "--runtime", help="What runs its code: python, shell, or a Jupyter kernel of the image (see bai runtimes)."
        ),
        click.option("--shmem", help="Size of /dev/shm, such as 64m."),
        click.option("--priority", type=int, help="Higher starts earlier."),
        click.option(
            "--requeue/--no-requeue",
            default=None,
            help="Whether it may be ended and run again when a more important session needs the room; batch sessions "
            "may if not said.",
        ),
        click.option("--depends-on", "depends_on", multiple=True, metavar="SESSION", help="Wait for its success."),
        click.option(
            "--if-dependency-fails",
            "dependency_failure",
            type=click.Choice(["cancel", "start-anyway"]),
            default="cancel",
            show_default=True,
            help="What to do when one of them fails.",
        ),
        click.option(
            "--pending-timeout",
            "pending_timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            help="Cancel it when it has waited so many seconds for a place.",
        ),
        click.option("--resource-group", help="The set of nodes to run on."),
        click.option("--agent", "agents", multiple=True, help="Run on this node only. Repeatable."),
        click.option("--tag", help="A word of yours, kept with the session."),
        click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait for it to run."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def creation_arguments(
    *,
    name: str | None,
    resources: Sequence[str],
    env: Sequence[str],
    bootstrap: str | None,
    depends_on: Sequence[str],
    agents: Sequence[str],
    **rest: Any,
) -> dict[str, Any]:
    """Turn the options of :func:`creation_options` into arguments of ``sessions.create``."""
    slots = parse_pairs(resources, "-r/--resource", "cpu=1")
    arguments = {
        "name": name,
        "env": parse_pairs(env, "-e/--env", "NAME=VALUE"),
        "bootstrap_script": bootstrap,
        "depends_on": list(depends_on),
        "agents": list(agents),
        **rest,
    }
    arguments.update({slot: slots.pop(slot) for slot in ("cpu", "mem") if slot in slots})
    return {**arguments, "resources": slots}


def parse_pairs(pairs: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` texts.

    Raises:
        click.UsageError: one has no ``=``.
    """
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option}: {pair!r} is not of the form {example}")
        parsed[name] = value
    return parsed


def read_text(source: str) -> str:
    """Return the content of a file, or of standard input for ``-``."""
    if source == "-":
        return sys.stdin.read()
    with open(source, encoding="utf-8") as file:
        return file.read()

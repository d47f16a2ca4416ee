"""Commands about the scheduler's mind: why a session waits, and what would become of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for
from backendai_ray.core.sessions import Status

if TYPE_CHECKING:
    from backendai_ray.client import Explanation


@click.command("explain")
@options.session_argument
@options.json_option
def explain_command(session: str, as_json: bool) -> None:
    """Say why SESSION waits, node by node, and when it may start.

    \b
    bai explain my-session
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        explanation = handle.explain()
    _tell(explanation, f"{handle.name} is {explanation.status}", as_json=as_json)


@click.command("schedule")
@click.argument("image")
@click.option("--dry-run", is_flag=True, help="Rehearse only; nothing is submitted.")
@options.batch_options
@options.creation_options
@options.json_option
def schedule_command(
    image: str,
    dry_run: bool,
    command: str | None,
    batch_timeout: float | None,
    starts_at: str | None,
    as_json: bool,
    **creation: Any,
) -> None:
    """Say where a session of IMAGE would go if it were started now, or why it would wait and for how long.

    Takes what `bai start` takes, and refuses what that refuses; no session is made.

    \b
    bai schedule python --dry-run -r cpu=8 -r mem=16g
    bai schedule python --dry-run --cluster-size 4 --cluster-mode multi-node -r cuda.device=2
    """
    if not dry_run:
        raise click.UsageError("bai schedule only rehearses: add --dry-run. To start a session: bai start.")
    arguments = options.creation_arguments(**creation)
    arguments.pop("timeout")  # nothing is waited for
    arguments |= options.batch_arguments(command, batch_timeout, starts_at)
    with options.make_client() as client:
        explanation = client.sessions.dry_run(image, **arguments)
    if explanation.session_id:
        who = f"The live session {explanation.session_name} would be used: it is {explanation.status}"
    elif explanation.is_placeable:
        who = "It would start now"
    else:
        who = "It would wait"
    _tell(explanation, who, as_json=as_json)


def _tell(explanation: Explanation, who: str, *, as_json: bool) -> None:
    out = output_for(as_json)
    if as_json:
        out.record(explanation.model_dump(mode="json"), ())
        return
    click.echo(f"{who}: {explanation.message or explanation.code}")
    for line in _facts(explanation):
        click.echo(line)
    if explanation.status == Status.PENDING and not explanation.is_placeable:
        columns = (("NODE", "agent_id"), ("REASON", "code"), ("MISSING", "shortfall"), ("EXPLANATION", "message"))
        rows = [node.model_dump(mode="json") for node in explanation.nodes]
        out.table(columns, rows, empty="No node was looked at.")


def _facts(explanation: Explanation) -> Iterator[str]:
    if explanation.position is not None:
        yield f"It is number {explanation.position} of {explanation.waiting} that wait."
    estimate = explanation.estimate
    if estimate is not None and not explanation.is_placeable:
        when = "It may start" if estimate.at is not None else "When it may start is not known:"
        yield f"{when} {estimate.message}."
    for kernel in explanation.placement:
        devices = "; ".join(f"{slot} {', '.join(names)}" for slot, names in kernel.devices.items())
        yield f"  {kernel.agent_id}: {devices}"
    if explanation.warning:
        yield f"Warning: {explanation.warning}"

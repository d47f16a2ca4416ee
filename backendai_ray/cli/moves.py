"""``bai consolidate``: which running sessions would have to go elsewhere so that a waiting one can start."""

from __future__ import annotations

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for


@click.command("consolidate")
@options.session_argument
@click.option("--apply", is_flag=True, help="Carry it out; else it is only said what would be done.")
@click.option(
    "--max-moves", type=click.IntRange(1, 8), default=3, show_default=True, help="So many sessions are moved at most."
)
@click.option(
    "--min-runtime",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Leave alone what was placed more recently.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long processes have between the notice and the kill; as usual if not said.",
)
@options.json_option
def consolidate_command(
    session: str, apply: bool, max_moves: int, min_runtime: float, grace: float | None, as_json: bool
) -> None:
    """Find the fewest moves of running sessions that let SESSION start, which waits.

    Only sessions that may run again (batch, or started with --requeue) are moved, and they start from their beginning.
    You can move your own sessions; an administrator moves anybody's.

    \b
    bai consolidate my-session
    bai consolidate my-session --apply --grace 60
    """
    with options.make_client() as client:
        found = client.sessions.get(session).consolidate(
            apply=apply, max_moves=max_moves, min_runtime_s=min_runtime, grace_s=grace
        )
    out = output_for(as_json)
    if as_json:
        out.record(found.model_dump(mode="json"), ())
        return
    click.echo(f"{found.session_name}: {found.message}.")
    if not found.moves:
        return
    columns = (("SESSION", "session_id"), ("FROM", "from"), ("TO", "to"), ("LOSES", "loses"))
    rows = [
        {
            "session_id": move.session_id,
            "from": ", ".join(move.from_agents),
            "to": ", ".join(move.to_agents),
            "loses": f"{move.ran_s:.0f} s",
        }
        for move in found.moves
    ]
    out.table(columns, rows, empty="")
    click.echo("They are being moved." if found.applied else "Nothing was done; add --apply to carry it out.")

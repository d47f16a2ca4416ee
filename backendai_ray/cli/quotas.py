"""``bai quota list | set | rm``: what keypairs, users, projects and domains may have."""

from __future__ import annotations

from collections.abc import Sequence

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for
from backendai_ray.core.quotas import ScopeKind

_scope_argument = click.argument("scope", type=click.Choice([kind.value for kind in ScopeKind]))
_name_argument = click.argument("name")


@click.group("quota")
def quota_command() -> None:
    """List, set and remove quotas: limits on what sessions may hold together. Every subcommand takes --json.

    \b
    bai quota set project default/vision -r cuda.device=8 --sessions 20 --pending 100
    bai quota list
    """


@quota_command.command("list")
@options.json_option
def list_command(as_json: bool) -> None:
    """List quotas with what is taken of them: for administrators all, for others those that bind them.

    \b
    bai quota list
    """
    with options.make_client() as client:
        quotas = client.quotas()
    rows = []
    for quota in quotas:
        slots = ", ".join(f"{slot} {quota.used_slots.get(slot, '0')}/{most}" for slot, most in quota.slots.items())
        sessions = "" if quota.sessions is None else f"{quota.used_sessions}/{quota.sessions}"
        waiting = "" if quota.pending is None else f"{quota.used_pending}/{quota.pending}"
        said = {"in_use": slots, "sessions_used": sessions, "waiting": waiting}
        rows.append({**quota.model_dump(mode="json"), **({} if as_json else said)})
    columns = (
        ("SCOPE", "scope"),
        ("NAME", "name"),
        ("IN USE", "in_use"),
        ("SESSIONS", "sessions_used"),
        ("WAITING", "waiting"),
    )
    output_for(as_json).table(columns, rows, empty="No quota is set.")


@quota_command.command("set")
@_scope_argument
@_name_argument
@click.option(
    "-r",
    "--resource",
    "resources",
    multiple=True,
    metavar="SLOT=AMOUNT",
    help="What its sessions may hold together, such as cpu=32, mem=256g or cuda.device=4. Repeatable.",
)
@click.option("--sessions", type=click.IntRange(min=0), help="How many sessions may hold resources at a time.")
@click.option("--pending", type=click.IntRange(min=0), help="How many sessions may wait.")
@options.json_option
def set_command(
    scope: str, name: str, resources: Sequence[str], sessions: int | None, pending: int | None, as_json: bool
) -> None:
    """Replace the quota of SCOPE (keypair, user, project, domain) NAME; for administrators.

    A project's name is DOMAIN/PROJECT. What is not given is not limited. Sessions that run already go on; those that
    wait start when the quota allows it.

    \b
    bai quota set user alice@example.com -r cpu=16 -r mem=64g --sessions 4
    bai quota set domain default --pending 1000
    """
    slots = options.parse_pairs(resources, "-r/--resource", "cpu=32")
    if not slots and sessions is None and pending is None:
        raise click.UsageError("give -r, --sessions or --pending; `bai quota rm` removes a quota")
    with options.make_client() as client:
        quota = client.set_quota(scope, name, slots=slots, sessions=sessions, pending=pending)
    output_for(as_json).done(f"The quota of {scope} {name} is set.", quota.model_dump(mode="json"))


@quota_command.command("rm")
@_scope_argument
@_name_argument
@options.json_option
def rm_command(scope: str, name: str, as_json: bool) -> None:
    """Remove the quota of SCOPE NAME; for administrators.

    \b
    bai quota rm user alice@example.com
    """
    with options.make_client() as client:
        client.remove_quota(scope, name)
    output_for(as_json).done(f"No quota binds {scope} {name} any more.", {"scope": scope, "name": name})

"""Commands that tell what happens and why."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for, print_json

if TYPE_CHECKING:
    from backendai_ray.client import DependencyNode, SchedulingEntry, StatusChange


@click.command("history")
@options.session_argument
@click.option("-k", "--kernels", is_flag=True, help="Those of its containers too.")
@click.option("--waits/--no-waits", default=True, show_default=True, help="Also every reason for which it waited.")
@options.json_option
def history_command(session: str, kernels: bool, waits: bool, as_json: bool) -> None:
    """Show every status SESSION has had, what it waited for, and why.

    \b
    bai history my-session
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        changes = [change for change in handle.history() if kernels or not change.kernel_id]
        entries = handle.scheduling_history() if waits else []
    dated = [(change.at, _change_row(change)) for change in changes]
    dated += [(entry.at, _wait_row(entry)) for entry in entries]
    rows = [row for _, row in sorted(dated, key=lambda pair: pair[0] or datetime.min.replace(tzinfo=UTC))]
    columns = [("WHEN (UTC)", "when"), ("STATUS", "after"), ("REASON", "reason"), ("EXPLANATION", "message")]
    if kernels:
        columns.insert(1, ("KERNEL", "kernel"))
    output_for(as_json).table(columns, rows, empty="It has had no change of status yet.")


def _change_row(change: StatusChange) -> dict[str, Any]:
    when = _when(change.at)
    return {**change.model_dump(mode="json"), "kind": "status", "when": when, "kernel": change.kernel_id[:8]}


def _wait_row(entry: SchedulingEntry) -> dict[str, Any]:
    waits = {"before": "PENDING", "after": "PENDING", "reason": entry.code, "kernel": "", "kernel_id": ""}
    return {**entry.model_dump(mode="json"), **waits, "kind": entry.verdict, "when": _when(entry.at)}


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3] if at else ""


@click.command("dependencies")
@options.session_argument
@options.json_option
def dependencies_command(session: str, as_json: bool) -> None:
    """Show what SESSION depends on, and what that depends on, as a tree.

    \b
    bai dependencies train
    """
    with options.make_client() as client:
        graph = client.sessions.get(session).dependency_graph()
    if as_json:
        print_json(graph.model_dump(mode="json"))
        return
    for line in _tree(graph):
        click.echo(line)


def _tree(node: DependencyNode, ahead: str = "", mark: str = "") -> Iterator[str]:
    more = "" if node.is_complete else "  …"
    yield f"{mark}{node.name}  {node.status}  {node.id[:8]}{more}"
    for number, child in enumerate(node.depends_on, 1):
        is_last = number == len(node.depends_on)
        yield from _tree(child, ahead + ("   " if is_last else "│  "), ahead + ("└─ " if is_last else "├─ "))


@click.command("events")
@click.argument("session", required=False)
@click.option("--since", "last_event_id", default="", metavar="ID", help="Go on after the event of this id.")
@options.json_option
def events_command(session: str | None, last_event_id: str, as_json: bool) -> None:
    """Follow what happens to your sessions, or to SESSION, until Ctrl-C or its end.

    \b
    bai events
    bai events my-session --json
    """
    with options.make_client() as client:
        if session is None:
            events = client.events(last_event_id=last_event_id)
        else:
            events = client.sessions.get(session).events(last_event_id=last_event_id)
        for event in events:
            if as_json:
                print_json({"id": event.id, "event": event.name, **event.data})
                continue
            who = event.data.get("sessionName") or event.data.get("sessionId") or ""
            why = event.data.get("message") or event.data.get("reason") or ""
            click.echo(f"{who}  {event.name}  {why}")


@click.command("nodes")
@options.json_option
def nodes_command(as_json: bool) -> None:
    """List the nodes, what they have and what is in use; for administrators.

    \b
    bai nodes
    """
    with options.make_client() as client:
        nodes = client.agents()
    rows = []
    for node in nodes:
        used = ", ".join(f"{slot} {node.occupied.get(slot, '0')}/{has}" for slot, has in node.capacity.items())
        state = node.status if node.schedulable else f"{node.status}, takes nothing new"
        rows.append({**node.model_dump(mode="json"), "used": used, "state": state})
    columns = (
        ("NODE", "id"),
        ("STATUS", "state"),
        ("GROUP", "resource_group"),
        ("ARCHITECTURE", "architecture"),
        ("BACKEND", "backend"),
        ("IN USE", "used"),
        ("WHY", "message"),
    )
    output_for(as_json).table(columns, rows, empty="No node has joined yet.")


@click.command("runtimes")
@click.argument("image")
@options.json_option
def runtimes_command(image: str, as_json: bool) -> None:
    """List what can run code in IMAGE: Python, the shell, and the Jupyter kernels that the image has.

    \b
    bai runtimes my-r-image
    bai run my-r-image --runtime ir -c 'mean(c(1, 2, 3))'
    """
    with options.make_client() as client:
        runtimes = client.runtimes(image)
    rows = [{**one.model_dump(mode="json"), "default": "yes" if one.is_default else ""} for one in runtimes]
    columns = (("RUNTIME", "name"), ("LANGUAGE", "language"), ("TITLE", "title"), ("DEFAULT", "default"))
    output_for(as_json).table(columns, rows, empty="No code can be run in it.")


@click.command("groups")
@options.json_option
def groups_command(as_json: bool) -> None:
    """List the resource groups, the policy that decides in each, and what is wrong with it.

    \b
    bai groups
    """
    with options.make_client() as client:
        rows = [group.model_dump(mode="json") for group in client.groups()]
    columns = (
        ("GROUP", "name"),
        ("POLICY", "policy"),
        ("SELECTION", "selection"),
        ("WAITING", "waiting"),
        ("WARNING", "warning"),
    )
    output_for(as_json).table(columns, rows, empty="There is no resource group.")

"""Commands about one node."""

from __future__ import annotations

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for


@click.group("node")
def node_command() -> None:
    """Look at one node; for administrators.

    \b
    bai node show gpu-box-1
    """


@node_command.command("show")
@click.argument("node", metavar="NODE")
@options.json_option
def show_command(node: str, as_json: bool) -> None:
    """Draw NODE: sockets, cores, accelerators and how they are linked, and which session holds what.

    \b
    bai node show gpu-box-1
    """
    with options.make_client() as client:
        detail = client.node(node)
    if as_json:
        output_for(as_json).record(detail.model_dump(mode="json"), ())
        return
    from backendai_ray.cli.node_drawing import draw_node

    for line in draw_node(detail):
        click.echo(line)

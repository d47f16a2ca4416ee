"""``bai up | down | env | status``: a cluster on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backendai_ray.core.errors import BackendError

if TYPE_CHECKING:
    from backendai_ray.config import Settings

F = TypeVar("F", bound=Callable[..., Any])

_data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="BAI_DATA_DIR",
    help="The cluster's folder (store, credentials, sessions).  [env: BAI_DATA_DIR]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _load(data_dir: Path | None, config: Path | None = None, **overrides: Any) -> Settings:
    try:
        from backendai_ray.config import load_settings
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"{exc.name} is not installed: a cluster needs `pip install 'backendai-ray[cluster]'`"
        ) from None
    if data_dir is not None:
        overrides["data_dir"] = data_dir.resolve()
    return load_settings(config, **overrides)


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Return when the cluster is ready; it runs on.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A TOML settings file.")
@click.option("--port", type=click.IntRange(0, 65535), help="The front door's port; 0 takes a free one.")
@click.option("--backend", type=click.Choice(["auto", "docker", "process"]), help="What sessions run in.")
@_data_dir_option
@_json_option
def up(
    detach: bool, config: Path | None, port: int | None, backend: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """Start a cluster on this machine, or say where the running one is.

    \b
    bai up --detach && eval "$(bai env)" && bai run python -c 'print("hello")'
    """
    overrides: dict[str, Any] = {}
    if port is not None:
        overrides["api"] = {"port": port}
    if backend is not None:
        overrides["agent"] = {"backend": backend}
    settings = _load(data_dir, config, **overrides)
    from backendai_ray.local_cluster import LocalCluster, read_state

    if read_state(settings.data_dir) is not None:
        cluster = LocalCluster.attach(settings)
        _say_ready(cluster, as_json, already=True)
        return
    progress = (lambda _: None) if as_json else (lambda text: click.echo(f"… {text}", err=True))
    cluster = LocalCluster.start(settings, on_progress=progress)
    _say_ready(cluster, as_json, already=False)
    if not detach:
        _hold(cluster)


def _say_ready(cluster: Any, as_json: bool, *, already: bool) -> None:
    state = cluster.state
    if as_json:
        click.echo(json.dumps({"endpoint": state.endpoint, "pid": state.pid, "data_dir": state.data_dir}))
        return
    click.echo(f"The cluster {'runs already' if already else 'is ready'} at {state.endpoint} (pid {state.pid}).")
    click.echo('Use it from a shell with:  eval "$(bai env)"')


def _hold(cluster: Any) -> None:
    """Stay in the foreground until Ctrl-C or until the cluster ends by itself."""
    import signal
    import time

    from backendai_ray.local_cluster import read_state

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    click.echo("Press Ctrl-C to end it and its sessions.", err=True)
    try:
        while read_state(cluster.settings.data_dir) is not None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo("… ending the cluster", err=True)
        cluster.stop()
        return
    raise click.ClickException(f"the cluster ended; see {cluster.settings.data_dir / 'logs'}")


@click.command()
@click.option("--keep-sessions", is_flag=True, help="Leave sessions running; the next `bai up` finds them again.")
@_data_dir_option
@_json_option
def down(keep_sessions: bool, data_dir: Path | None, as_json: bool) -> None:
    """End the cluster on this machine and, unless told otherwise, its sessions."""
    settings = _load(data_dir)
    from backendai_ray.local_cluster import LocalCluster, read_state

    was_running = read_state(settings.data_dir) is not None
    if was_running:
        LocalCluster.attach(settings).stop(keep_sessions=keep_sessions)
    if as_json:
        click.echo(json.dumps({"was_running": was_running}))
    else:
        click.echo("The cluster has ended." if was_running else f"No cluster runs on {settings.data_dir}.")


@click.command()
@_data_dir_option
@_json_option
def env(data_dir: Path | None, as_json: bool) -> None:
    """Print the settings that clients need, to be read by a shell: eval "$(bai env)"."""
    settings = _load(data_dir)
    from backendai_ray.local_cluster import LocalCluster

    variables = LocalCluster.attach(settings).environment
    if as_json:
        click.echo(json.dumps(variables))
        return
    click.echo("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()))


@click.command()
@_data_dir_option
@_json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """Say whether a cluster runs on this machine, and how its nodes are. Exit code 1 when none runs."""
    settings = _load(data_dir)
    from backendai_ray.client import Client
    from backendai_ray.local_cluster import read_state

    state = read_state(settings.data_dir)
    if state is None:
        click.echo(json.dumps({"running": False}) if as_json else f"No cluster runs on {settings.data_dir}.")
        sys.exit(1)
    with Client(endpoint=state.endpoint, access_key=state.access_key, secret_key=state.secret_key) as client:
        try:
            nodes = [node.model_dump(mode="json") for node in client.agents()]
        except BackendError as exc:
            raise click.ClickException(f"the cluster (pid {state.pid}) does not answer: {exc.message}") from None
    if as_json:
        click.echo(json.dumps({"running": True, "endpoint": state.endpoint, "pid": state.pid, "nodes": nodes}))
        return
    click.echo(f"The cluster runs at {state.endpoint} (pid {state.pid}), {len(nodes)} node(s).")
    for node in nodes:
        click.echo(f"  {node['id']}: {node['status']} ({node['backend']})")


@click.command()
@click.option("--address", default="auto", show_default=True, help="The Ray cluster's address.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A TOML settings file.")
@click.option("--host", default=None, help="Address that the front door listens on.")
@_data_dir_option
@_json_option
def deploy(address: str, config: Path | None, host: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Make the actors on a Ray cluster that runs already (after `ray up`); repeating it changes nothing.

    The event bus must be a server of its own here: set bus.url. The store should be PostgreSQL: set store.url.
    """
    import asyncio
    import logging

    settings = _load(data_dir, config, **({"api": {"host": host}} if host else {}))
    bus_url = settings.bus.url.get_secret_value()
    if not bus_url:
        raise click.ClickException("set bus.url (BAI_BUS__URL=redis://…): only `bai up` brings an event bus of its own")
    from backendai_ray.ray_env import apply_ray_environment

    apply_ray_environment(loopback_only=False, token_file=_shared_token())
    import ray

    from backendai_ray.cluster import deploy as deploy_actors

    try:
        ray.init(address=address, namespace=settings.namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as exc:
        raise click.ClickException(f"no Ray cluster answers at {address}: {exc}") from None
    ports = [settings.api.port + index for index in range(settings.api.front_doors)]
    made = asyncio.run(deploy_actors(settings, bus_url=bus_url, ports=ports))
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    click.echo(f"The cluster is ready at {', '.join(made.endpoints)}.")
    click.echo(f"export BACKEND_ENDPOINT={made.endpoints[0]} BACKEND_ENDPOINT_TYPE=api")
    click.echo(f"export BACKEND_ACCESS_KEY={made.access_key} BACKEND_SECRET_KEY={made.secret_key}")


def _shared_token() -> Path | None:
    path = Path("~/.ray/auth_token").expanduser()
    return path if path.exists() else None

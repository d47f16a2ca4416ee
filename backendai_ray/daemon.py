"""The process behind ``bai up``: holds Ray, the embedded event bus and the actors of a one-machine cluster.

``python -m backendai_ray.daemon`` reads its settings from standard input and tells its starter how it goes on
standard output, one JSON object a line. SIGTERM and SIGINT end the sessions and then the cluster; SIGUSR1 ends the
cluster and leaves the sessions to the next one on the same data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog

from backendai_ray.config import Settings
from backendai_ray.core.errors import BackendError, Conflict, Unavailable
from backendai_ray.local_cluster import (
    ClusterState,
    process_start_ticks,
    settings_from_wire,
    state_file,
    write_state,
)
from backendai_ray.logs import configure_logging
from backendai_ray.ray_env import apply_ray_environment, ensure_token_file

log = structlog.get_logger()

DRAIN_TIMEOUT_S = 45.0
NODE_TIMEOUT_S = 30.0
"""A cluster whose node is not ready by then is usable all the same: sessions wait, and `bai nodes` says why."""
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

Tell = Callable[[str, object], None]


async def run_cluster(settings: Settings, tell: Tell) -> None:
    """Run a cluster until a signal ends it.

    Args:
        settings: The cluster's settings.
        tell: Called with ``("progress", sentence)`` on the way and ``("ready", ClusterState)`` at the end of it.

    Raises:
        BackendError: it could not start; what had been started is gone again.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    configure_logging(settings.data_dir / "logs", "daemon", settings.log_level)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_exclusive(settings.data_dir))
        _check_devices(settings)
        ended = _watch_signals()
        if settings.bus.url.get_secret_value():
            bus_url = settings.bus.url.get_secret_value()
        else:
            tell("progress", "starting the event bus")
            bus_url = await stack.enter_async_context(_embedded_bus(settings))
        tell("progress", "starting Ray")
        ray_address = stack.enter_context(_ray(settings))
        _watch_signals(ended)  # Ray takes SIGTERM for itself
        tell("progress", "starting the actors")
        state = await _deploy(settings, bus_url, ray_address)
        tell("progress", "waiting for the node")
        await _wait_for_node(settings, tell)
        write_state(state)
        stack.callback(state_file(settings.data_dir).unlink, missing_ok=True)
        tell("ready", state)
        log.info("cluster.ready", endpoint=state.endpoint)
        signal_number = await ended
        log.info("cluster.ending", signal=signal_number)
        if signal_number != signal.SIGUSR1:
            await _end_sessions(settings)


@contextlib.contextmanager
def _exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data folder: two clusters on one store would each believe to be its only writer."""
    lock = (data_dir / "daemon.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Conflict(f"a cluster runs already on {data_dir}; end it with `bai down`") from None
    with lock:
        yield


def _watch_signals(ended: asyncio.Future[int] | None = None) -> asyncio.Future[int]:
    loop = asyncio.get_running_loop()
    future = ended or loop.create_future()
    for number in _END_SIGNALS:
        loop.add_signal_handler(number, _resolve, future, number)
    return future


def _resolve(future: asyncio.Future[int], number: int) -> None:
    if not future.done():
        future.set_result(number)


@contextlib.asynccontextmanager
async def _embedded_bus(settings: Settings) -> AsyncIterator[str]:
    from backendai_ray.bus.embedded import EmbeddedBus

    bus = EmbeddedBus(settings.data_dir / "run")
    await bus.start()
    supervisor = asyncio.create_task(bus.supervise())
    try:
        yield bus.url
    finally:
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor
        await bus.stop()


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[str]:
    apply_ray_environment(loopback_only=True, token_file=ensure_token_file(settings.data_dir / "run" / "ray-token"))
    import ray

    from actors.node_watcher import NODE_ID_LABEL

    # Unix socket paths of Ray must stay short, so its scratch is not in the data folder.
    scratch = tempfile.mkdtemp(prefix="bai-ray-")
    try:
        ray.init(
            address="local",
            namespace=settings.namespace,
            include_dashboard=False,
            object_store_memory=settings.object_store_bytes,
            labels={NODE_ID_LABEL: settings.agent.node_id} if settings.agent.node_id else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=scratch,
        )
        yield str(ray.get_runtime_context().gcs_address)
    except ConnectionError as exc:
        raise Unavailable(f"Ray did not start: {exc}") from exc
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


async def _deploy(settings: Settings, bus_url: str, ray_address: str) -> ClusterState:
    from backendai_ray.cluster import deploy

    first = settings.api.port or _free_port(settings.api.host)
    ports = [first + index for index in range(settings.api.front_doors)]
    deployment = await deploy(settings, bus_url=bus_url, ports=ports)
    ticks = process_start_ticks(os.getpid())
    assert ticks is not None
    return ClusterState(
        pid=os.getpid(),
        started=ticks,
        endpoint=deployment.endpoints[0],
        access_key=deployment.access_key,
        secret_key=deployment.secret_key,
        ray_address=ray_address,
        namespace=settings.namespace,
        data_dir=str(settings.data_dir),
    )


def _check_devices(settings: Settings) -> None:
    """Have the device plug-ins look at their settings: this machine is the node, whose agent would fail on them."""
    from actors.agent.devices.base import installed_plugins

    installed_plugins(settings.agent)


async def _wait_for_node(settings: Settings, tell: Tell) -> None:
    from backendai_ray.cluster import wait_for_node

    if not await wait_for_node(settings, timeout_s=NODE_TIMEOUT_S):
        log.warning("cluster.no_node", waited_s=NODE_TIMEOUT_S)
        tell("progress", f"the node takes no sessions yet; {settings.data_dir / 'logs'} says why")


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


async def _end_sessions(settings: Settings) -> None:
    from backendai_ray.cluster import drain

    try:
        left = await drain(settings, timeout_s=DRAIN_TIMEOUT_S)
    except BackendError as exc:
        log.warning("cluster.drain_failed", error=exc.message)
    else:
        if left:
            log.warning("cluster.sessions_left", count=left)


def main() -> int:
    """Run a cluster for whoever started this process."""

    def tell(kind: str, what: object) -> None:
        body = what if not isinstance(what, ClusterState) else {f: getattr(what, f) for f in what.__slots__}
        # The starter may have gone once the cluster is ready; that is no reason to end.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps({kind: body}) + "\n")
            sys.stdout.flush()

    settings = settings_from_wire(sys.stdin.buffer.read())
    try:
        asyncio.run(run_cluster(settings, tell))
    except BackendError as exc:
        tell("failed", exc.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

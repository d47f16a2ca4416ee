"""A Ray cluster of several nodes on this machine with our actors on it, told by lines on stdin what becomes of nodes.

``python many_nodes.py DATA_DIR`` answers each line with one JSON line: first the endpoint and keys; then, for
``add NAME`` and ``remove NAME`` (kills the node's raylet), ``{"done": true}``. Ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

from backendai_ray.ray_env import apply_ray_environment

apply_ray_environment(loopback_only=True, token_file=None)

import ray  # noqa: E402 - Ray reads the environment when it is imported
from ray.cluster_utils import Cluster  # noqa: E402

from actors.node_watcher import NODE_ID_LABEL  # noqa: E402
from backendai_ray.bus.embedded import EmbeddedBus  # noqa: E402
from backendai_ray.cluster import deploy, drain, wait_for_node  # noqa: E402
from backendai_ray.config import load_settings  # noqa: E402

_NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _labels(name: str) -> dict[str, str]:
    return {NODE_ID_LABEL: name}


async def main(data_dir: Path) -> None:
    """Serve until stdin closes."""
    settings = load_settings(
        data_dir=data_dir,
        agent={"backend": "process", "reserved_mem": "0", "cpu_overcommit": 2},
        manager={"agent_lost_after_s": 3, "sweep_interval_s": 1, "heartbeat_timeout_s": 3},
    )
    bus = EmbeddedBus(data_dir / "run")
    await bus.start()
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "labels": _labels("head")})
    nodes = {}
    try:
        ray.init(address=cluster.address, namespace=settings.namespace, log_to_driver=False)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        made = await deploy(settings, bus_url=bus.url, ports=[port])
        await wait_for_node(settings, timeout_s=30)
        _say(endpoint=made.endpoints[0], access_key=made.access_key, secret_key=made.secret_key)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            verb, name = line.split()
            if verb == "add":
                nodes[name] = cluster.add_node(**_NODE, labels=_labels(name))
            else:
                nodes.pop(name).kill_raylet()
            _say(done=True)
        await drain(settings, timeout_s=30)
    finally:
        ray.shutdown()
        cluster.shutdown()
        await bus.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

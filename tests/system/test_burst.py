"""Many sessions at once on one machine with room for eight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import docker
import pytest

from actors.agent.backends.docker.containers import LABEL
from backendai_ray.client import Client
from backendai_ray.local_cluster import LocalCluster
from tests.support.live import CPU_OVERCOMMIT
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.blackbox, pytest.mark.timeout(420)]

COUNTS = {"process": 200, "docker": 60}
"""By backend; a container costs the engine a third of a second."""
ROOM = 8


def test_all_run_in_order_and_nothing_is_double_booked(live_cluster: LocalCluster, live_client: Client) -> None:
    """None is lost, they start in the order of submission, and no device is ever given out twice."""
    node = live_client.agents()[0]
    count = COUNTS[node.backend]
    each = float(node.capacity["cpu"]) / ROOM
    watcher = _Watcher(live_client, live_cluster)
    with ThreadPoolExecutor(1) as background:
        watching = background.submit(watcher.run)
        ids = []
        for index in range(count):
            session = live_client.sessions.create(
                "python",
                name=f"burst-{index:03d}",
                resources={"cpu": each, "mem": "64m"},
                type="batch",
                startup_command="true",
                wait=False,
            )
            ids.append(session.id)
        try:
            for one in ids:
                live_client.sessions.get(one).wait("TERMINATED", timeout=400)
        finally:
            watcher.done.set()
        watching.result()
    ended = [live_client.sessions.get(one).info() for one in ids]
    assert [info.result for info in ended] == ["success"] * count
    histories = {one: live_client.sessions.get(one).history() for one in ids}
    placed = [
        min(line.at for line in histories[one] if line.after == "SCHEDULED" and not line.kernel_id) for one in ids
    ]
    assert placed == sorted(placed)
    assert watcher.most_used <= float(node.capacity["cpu"])
    assert watcher.samples > 3
    wait_until(lambda: not any(map(float, live_client.agents()[0].occupied.values())), timeout_s=30)
    assert not list((live_cluster.settings.sessions_dir).glob("*/kernel.json"))
    if node.backend == "docker":
        assert watcher.overlaps == []
        leftovers = docker.from_env().containers.list(all=True, filters={"label": "backendai-ray.session-id"})
        assert [
            c.labels["backendai-ray.session-id"] for c in leftovers if c.labels["backendai-ray.session-id"] in ids
        ] == []


class _Watcher:
    """Looks at what is given out, as the Manager says and as the engine's containers show it."""

    def __init__(self, client: Client, cluster: LocalCluster) -> None:
        self._client = client
        self._ours = [f"{LABEL}home={cluster.settings.sessions_dir}", f"{LABEL}session-id"]
        self.done = threading.Event()
        self.most_used = 0.0
        self.samples = 0
        self.overlaps: list[str] = []

    def run(self) -> None:
        """Sample until told to stop."""
        node = self._client.agents()[0]
        engine = docker.from_env() if node.backend == "docker" else None
        while not self.done.wait(0.2):
            self.most_used = max(self.most_used, float(self._client.agents()[0].occupied.get("cpu", 0)))
            self.samples += 1
            if engine is not None:
                self._check_engine(engine)

    def _check_engine(self, engine: docker.DockerClient) -> None:
        """Every core's share in running containers stays within what the core gives out."""
        given: dict[str, float] = {}
        for row in engine.api.containers(filters={"label": self._ours}):
            try:
                config = engine.api.inspect_container(row["Id"])["HostConfig"]
            except docker.errors.NotFound:
                continue
            cores = config["CpusetCpus"].split(",")
            share = (config.get("NanoCpus") or 0) / 1e9 or float(len(cores))
            for core in cores:
                given[core] = given.get(core, 0.0) + share / len(cores)
        self.overlaps += [f"core {core}: {used}" for core, used in given.items() if used > CPU_OVERCOMMIT + 1e-6]

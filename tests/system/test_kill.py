"""``kill -9`` of every actor while a session executes code, on both backends: nobody but the killed one notices."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from backendai_ray.client import Client
from backendai_ray.local_cluster import LocalCluster
from bench.processes import actor_processes
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kill, pytest.mark.blackbox, pytest.mark.timeout(180)]

ACTORS = ["ManagerActor", "SokovanActor", "PolicyHostActor", "AgentActor", "FrontDoorActor"]

COUNTING = """
import time
from pathlib import Path
with open("runs.txt", "a") as file:
    file.write("run\\n")
for number in range(60):
    print("tick", number, flush=True)
    time.sleep(0.1)
"""


def _pid_of(cluster: LocalCluster, actor: str) -> int:
    return wait_until(
        lambda: next((pid for pid, name in actor_processes(cluster.state.pid).items() if name == actor), 0),
        timeout_s=30,
        story=f"no {actor} process",
    )


@pytest.mark.parametrize("actor", ACTORS)
def test_killing_an_actor_while_code_runs(live_cluster: LocalCluster, live_client: Client, actor: str) -> None:
    """The code goes on, its output after the kill arrives, it ran once, and the cluster serves again."""
    session = live_client.sessions.create("python", cpu=1, mem="256m")
    ticks: list[int] = []
    killed = threading.Event()
    victim = _pid_of(live_cluster, actor)

    text = ""
    for chunk in session.stream(COUNTING):
        if chunk.type == "stdout":
            text += chunk.data
        if not killed.is_set() and text.count("tick") >= 5:
            os.kill(victim, signal.SIGKILL)
            killed.set()
    ticks = [int(line.removeprefix("tick ")) for line in text.splitlines()]
    assert killed.is_set()
    assert ticks == list(range(60))
    assert session.run("print(open('runs.txt').read().count('run'))").stdout.strip() == "1"
    assert session.info().status == "RUNNING"
    assert _pid_of(live_cluster, actor) != victim

    later = live_client.sessions.create("python", cpu=1, mem="256m", timeout=60)
    assert later.run("print(6 * 7)").stdout.strip() == "42"
    for one in (later, session):
        one.destroy()
        one.wait("TERMINATED", timeout=60)
    wait_until(
        lambda: all(float(amount) == 0 for node in live_client.agents() for amount in node.occupied.values()),
        timeout_s=30,
        story=lambda: str([node.occupied for node in live_client.agents()]),
    )


def test_sessions_outlive_the_daemon(live_cluster: LocalCluster, live_client: Client) -> None:
    """Two actors die at the same moment; a session's state in memory is still there."""
    session = live_client.sessions.create("python", cpu=1, mem="256m")
    session.run("kept = 'from before'")
    for actor in ("ManagerActor", "AgentActor"):
        os.kill(_pid_of(live_cluster, actor), signal.SIGKILL)
    began = time.monotonic()
    assert session.run("print(kept)").stdout.strip() == "from before"
    assert time.monotonic() - began < 60
    session.destroy()
    session.wait("TERMINATED", timeout=60)

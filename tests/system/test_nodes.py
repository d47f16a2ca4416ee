"""Agents follow the nodes of the Ray cluster: they appear, take sessions, disappear, and gangs spread over them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backendai_ray.client import Client
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.blackbox, pytest.mark.timeout(180)]


class Nodes:
    """The cluster in its own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.hello = self._answer()

    def tell(self, line: str) -> None:
        """Add or remove a node."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._answer() == {"done": True}

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError("the cluster's process has ended")


@pytest.fixture
def nodes(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[Nodes]:
    """A cluster with one node, ``head``."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("many_nodes.py")), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr.log").open("w"),
        text=True,
        env=clean_environment,
    )
    assert process.stdin is not None
    yield Nodes(process)
    process.stdin.close()
    assert process.wait(90) == 0, (tmp_path / "stderr.log").read_text()[-3000:]


def test_nodes_join_take_gangs_and_leave(nodes: Nodes) -> None:
    hello = {name: str(value) for name, value in nodes.hello.items()}
    with Client(**hello) as client:
        assert [node.id for node in client.agents()] == ["head"]
        nodes.tell("add second")
        wait_until(lambda: _alive(client) == ["head", "second"], timeout_s=30, story=lambda: str(client.agents()))

        # Four cores a node: two kernels of three cores fit only one to a node.
        gang = client.sessions.create("python", cpu=3, mem="64m", cluster_size=2, cluster_mode="multi-node")
        kernels = gang.info().kernels
        assert sorted(str(kernel.agent_id) for kernel in kernels) == ["head", "second"]
        lonely = client.sessions.create("python", cpu=1, mem="64m")
        waiting = client.sessions.create("python", cpu=3, mem="64m", wait=False)

        nodes.tell("remove second")
        wait_until(lambda: _alive(client) == ["head"], timeout_s=30, story=lambda: str(client.agents()))
        # The gang lost a member with its node and ends; what fits in the freed room starts.
        assert gang.wait("TERMINATED", timeout=60).is_terminal
        assert waiting.wait("RUNNING", timeout=60).status == "RUNNING"
        assert waiting.run("print('up')").stdout.strip() == "up"
        if lonely.info().kernels[0].agent_id == "head":
            assert lonely.run("print('still here')").stdout.strip() == "still here"

        nodes.tell("add second")
        wait_until(lambda: _alive(client) == ["head", "second"], timeout_s=30, story=lambda: str(client.agents()))


def _alive(client: Client) -> list[str]:
    return sorted(node.id for node in client.agents() if node.status == "ALIVE" and node.schedulable)

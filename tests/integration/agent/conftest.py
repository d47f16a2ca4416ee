"""An agent in a process of its own, on each backend."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.agent.backends.box.cgroups import groups_named
from actors.agent.backends.docker.containers import LABEL
from backendai_ray.config import Settings, load_settings
from backendai_ray.core.ids import AgentId
from tests.integration.agent.hosting import HostedAgent
from tests.support.requirements import missing
from tests.support.waiting import wait_until


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images are probed and the runner is laid out once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tmp_path: Path, cache_dir: Path) -> Settings:
    (tmp_path / "cache").symlink_to(cache_dir)
    (tmp_path / "sessions").mkdir()
    return load_settings(data_dir=tmp_path, agent={"stop_grace_s": 2, "cpu_overcommit": 10})


@pytest.fixture
def agent_id() -> AgentId:
    return AgentId(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
async def hosted(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[HostedAgent]:
    """A running agent; afterwards nothing of it may be left in the engine, on the disk or in /proc."""
    if request.param == "docker":
        request.getfixturevalue("default_image")
    elif os.geteuid() != 0:
        missing("the process backend can only isolate kernels fully as root")
    agent = settings.agent.model_copy(update={"backend": request.param})
    hosted = HostedAgent(settings.model_copy(update={"agent": agent}))
    await hosted.start()
    yield hosted
    await hosted.stop()
    wait_until(lambda: not leftovers(request, hosted), story=lambda: str(leftovers(request, hosted)))


def leftovers(request: pytest.FixtureRequest, hosted: HostedAgent) -> list[str]:
    """Return whatever the agent's kernels left anywhere."""
    sessions = hosted.settings.sessions_dir
    left = [path.name for path in sessions.iterdir()]
    left += groups_named({fact.kernel_id for fact in hosted.facts} or {"none"})
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and str(sessions).encode() in (folder / "cmdline").read_bytes():
                left.append((folder / "cmdline").read_text()[:200])
        except OSError:
            continue
    if hosted.settings.agent.backend == "docker":
        engine = request.getfixturevalue("docker_engine")
        left += engine.containers.list(all=True, filters={"label": f"{LABEL}agent-id={hosted.id}"})
        ids = {fact.session_id for fact in hosted.facts if fact.session_id}
        left += [n for one in ids for n in engine.networks.list(names=[f"backendai-ray-{one}"])]
    return left

"""Containers started ahead: what a kernel made from one has, and that each is handed over once, whatever happens."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from actors.agent.backends.base import Launch, Spare
from actors.agent.backends.docker import DockerBackend, spares
from actors.agent.backends.docker.containers import LABEL, SPARE_LABEL, container_name
from actors.agent.backends.environ import kernel_environ
from actors.agent.devices.base import Grant
from actors.agent.folders import kernel_folders
from actors.agent.journal import Journal, KernelRecord
from backendai_ray.config import Settings
from backendai_ray.core.ids import AgentId
from backendai_ray.core.sessions import KernelSpec, Status
from tests.integration.agent.conftest import leftovers
from tests.integration.agent.hosting import MIB, HostedAgent, kernel_spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.docker


@pytest.fixture
def pooled(settings: Settings, default_image: str) -> Settings:
    """Settings of a node with room for two spares."""
    agent = settings.agent.model_copy(update={"backend": "docker", "warm_pool": 2})
    return settings.model_copy(update={"agent": agent})


@pytest.fixture
async def hosted(request: pytest.FixtureRequest, pooled: Settings) -> AsyncIterator[HostedAgent]:
    hosted = HostedAgent(pooled)
    await hosted.start()
    yield hosted
    await hosted.stop()
    wait_until(lambda: not leftovers(request, hosted), story=lambda: str(leftovers(request, hosted)))


@pytest.fixture
def backend(pooled: Settings, agent_id: AgentId) -> Iterator[DockerBackend]:
    backend = DockerBackend(pooled, agent_id)
    backend.open()
    yield backend
    for spare in backend.list_spares():
        backend.remove_spare(spare)
    for found in backend.list_own():
        backend.stop(found.life, 0)
        backend.remove(found.life)
    backend.close()


def of_size(**changes: object) -> KernelSpec:
    return kernel_spec(**{"shmem_bytes": 64 * MIB, "hostname": "main1", "cluster_hosts": ("main1",), **changes})  # type: ignore[arg-type]


def spares_of(engine: docker.DockerClient, agent_id: AgentId) -> list[str]:
    found = engine.containers.list(filters={"label": [f"{LABEL}agent-id={agent_id}", SPARE_LABEL]})
    return [one.name for one in found if one.name.startswith("spare.")]


async def two_spares(engine: docker.DockerClient, agent_id: AgentId) -> None:
    await asyncio.to_thread(wait_until, lambda: len(spares_of(engine, agent_id)) == 2, timeout_s=30)


async def test_a_kernel_made_from_a_spare_is_like_any_other(
    hosted: HostedAgent, docker_engine: docker.DockerClient
) -> None:
    cold = of_size(environ={"MINE": "1"})
    await hosted.begin(cold)
    await two_spares(docker_engine, hosted.id)
    before = set(spares_of(docker_engine, hosted.id))
    warm = of_size(core=1, units=500, memory_bytes=200 * MIB, environ={"MINE": "a=b", "TZ": "Asia/Seoul"})
    await hosted.begin(warm)
    assert len(before & set(spares_of(docker_engine, hosted.id))) == 1
    container = docker_engine.containers.get(f"backendai-ray-{warm.kernel_id}-1.0")
    limits = container.attrs["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (200 * MIB, 200 * MIB)
    assert limits["CpuQuota"] / limits["CpuPeriod"] == 0.5
    assert limits["CpusetCpus"] == "1"
    show = "import os, time, socket; print({})"
    for what in ("sorted(n for n in os.environ if n != 'MINE' and n != 'TZ')", "socket.gethostname()", "os.getcwd()"):
        assert await hosted.say(warm, show.format(what)) == await hosted.say(cold, show.format(what))
    assert await hosted.say(warm, show.format("os.environ['MINE'], time.tzname[0]")) == "a=b KST"
    assert await hosted.say(warm, show.format("os.environ['BACKENDAI_KERNEL_ID']")) == warm.kernel_id
    await hosted.run(warm, "open('kept', 'w').write('here')")
    assert (hosted.settings.sessions_dir / warm.kernel_id / "work/kept").read_text() == "here"
    # It is found again like any other, and its end is told with its exit code.
    await hosted.kill()
    await hosted.start()
    assert await hosted.say(warm, show.format("open('kept').read()")) == "here"
    await hosted.run(warm, "import threading\nthreading.Timer(0.2, lambda: os._exit(7)).start()")
    fact = await hosted.until_status(warm, Status.TERMINATED)
    assert (fact.reason, fact.exit_code) == ("self-terminated", 7)
    await hosted.call("acknowledge", [warm.kernel_id])
    await hosted.end(cold)


async def test_many_at_once_get_each_their_own(hosted: HostedAgent, docker_engine: docker.DockerClient) -> None:
    first = of_size()
    await hosted.begin(first)
    await two_spares(docker_engine, hosted.id)
    specs = [of_size(core=number % 2, memory_bytes=160 * MIB) for number in range(4)]
    await hosted.begin(*specs)
    said = await asyncio.gather(
        *(hosted.say(spec, "import os; print(os.environ['BACKENDAI_KERNEL_ID'])") for spec in specs)
    )
    assert said == [spec.kernel_id for spec in specs]
    assert await hosted.call("drop_spares") <= 2
    assert not spares_of(docker_engine, hosted.id)
    await hosted.end(first, *specs, forced=True)


async def test_the_spares_of_a_killed_agent_are_removed_by_the_next(
    hosted: HostedAgent, docker_engine: docker.DockerClient
) -> None:
    spec = of_size()
    await hosted.begin(spec)
    await two_spares(docker_engine, hosted.id)
    before = set(spares_of(docker_engine, hosted.id))
    await hosted.kill()
    await hosted.start()
    assert not before & set(spares_of(docker_engine, hosted.id))
    assert await hosted.say(spec, "print(1)") == "1"
    await hosted.end(spec, forced=True)


@pytest.mark.parametrize("got_to", ["renamed", "moved"])
async def test_a_hand_over_that_was_cut_off_is_completed(hosted: HostedAgent, pooled: Settings, got_to: str) -> None:
    """The agent died after the engine had given the spare its life's name, before or after the folders moved."""
    await hosted.kill()
    backend = DockerBackend(pooled, hosted.id)
    backend.open()
    try:
        record = KernelRecord(
            agent_id=hosted.id, spec=of_size(environ={"MINE": "1"}), uid=1000, backend="docker", status=Status.CREATING
        )
        Journal(pooled.sessions_dir, hosted.id).begin([record])
        spare = backend.make_spare(backend.prepare_image("python", ""), 1000)
        folders = kernel_folders(pooled.sessions_dir, record.life)
        backend._api.rename(spare.container_id, container_name(record.life))
        if got_to == "moved":
            spares._move_folders(spares.folder(pooled, spare.name), folders)
    finally:
        backend.close()
    await hosted.start()
    fact = await hosted.until_status(record.spec, Status.RUNNING)
    assert fact.container_id == spare.container_id
    assert await hosted.say(record.spec, "import os; print(os.environ['MINE'])") == "1"
    await hosted.end(record.spec, forced=True)


async def test_a_spare_that_died_is_passed_over(hosted: HostedAgent, docker_engine: docker.DockerClient) -> None:
    first = of_size()
    await hosted.begin(first)
    await two_spares(docker_engine, hosted.id)
    for name in spares_of(docker_engine, hosted.id):
        docker_engine.containers.get(name).kill()
    second = of_size(core=1)
    await hosted.begin(second)
    assert await hosted.say(second, "print(1)") == "1"
    await hosted.end(first, second, forced=True)


def test_what_a_spare_cannot_become(backend: DockerBackend, pooled: Settings) -> None:
    image = backend.prepare_image("python", "")

    def launch(grant: Grant | None = None, **changes: object) -> Launch:
        record = KernelRecord(agent_id=backend.agent_id, spec=of_size(**changes), uid=1000)
        folders = kernel_folders(pooled.sessions_dir, record.life)
        folders.work.mkdir(parents=True, exist_ok=True)
        usual = Grant(cores=(0,), cpu_units=1000, memory_bytes=256 * MIB)
        return Launch(
            life=record.life, spec=record.spec, image=image, folders=folders, grant=grant or usual,
            environ=kernel_environ(record.spec, Grant()), pids_limit=100, uid=1000, output_buffer_bytes=2**20,
        )  # fmt: skip

    assert backend.fits_spare(launch())
    assert not backend.fits_spare(launch(environ={"PYTHONPATH": "/x"}))
    assert not backend.fits_spare(launch(environ={"LD_PRELOAD": "x.so"}))
    assert not backend.fits_spare(launch(bootstrap_script="true"))
    assert not backend.fits_spare(launch(preopen_ports=(8080,)))
    assert not backend.fits_spare(launch(shmem_bytes=128 * MIB))
    assert not backend.fits_spare(launch(hostname="sub1", cluster_hosts=("main1", "sub1")))
    assert not backend.fits_spare(launch(Grant(cpu_units=1000, memory_bytes=2**30, device_paths=("/dev/null",))))
    assert not backend.fits_spare(launch(Grant(cpu_units=1000, memory_bytes=16 * MIB)))
    used = launch()
    (used.folders.work / "file").touch()
    assert not backend.fits_spare(used)
    shutil.rmtree(pooled.sessions_dir)
    Path(pooled.sessions_dir).mkdir()


def test_folders_without_a_container_are_cleared(backend: DockerBackend, pooled: Settings) -> None:
    lost = spares.folder(pooled, spares.new_name(backend.agent_id))
    (lost / "run").mkdir(parents=True)
    spare: Spare = backend.make_spare(backend.prepare_image("python", ""), 1000)
    assert [one.name for one in backend.list_spares()] == [spare.name]
    assert not lost.exists()
    assert spares.folder(pooled, spare.name).exists()

"""An engine that goes away, is slow or fails, and containers that others touch or lie about."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator

import docker
import pytest

from actors.agent.backends.base import Life
from actors.agent.backends.docker.containers import LABEL, container_name
from backendai_ray.config import Settings
from backendai_ray.core.ids import KernelId
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from tests.integration.agent.conftest import leftovers
from tests.integration.agent.hosting import HostedAgent, kernel_spec
from tests.support.engine_proxy import EngineProxy
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.kill]


@pytest.fixture
def proxy() -> Iterator[EngineProxy]:
    proxy = EngineProxy()
    proxy.start()
    yield proxy
    proxy.close()


@pytest.fixture
async def hosted(
    request: pytest.FixtureRequest, settings: Settings, default_image: str, proxy: EngineProxy
) -> AsyncIterator[HostedAgent]:
    """An agent whose engine is the proxy."""
    agent = settings.agent.model_copy(update={"backend": "docker", "warm_pool": 0})
    hosted = HostedAgent(settings.model_copy(update={"agent": agent}), {"DOCKER_HOST": proxy.address})
    await hosted.start()
    yield hosted
    proxy.delay_s, proxy.fails = 0.0, None
    await hosted.stop()
    wait_until(lambda: not leftovers(request, hosted), story=lambda: str(leftovers(request, hosted)))


def name_of(spec: KernelSpec) -> str:
    return container_name(Life(kernel_id=spec.kernel_id, attempt=spec.attempt, epoch=spec.epoch))


async def test_engine_that_is_restarted(
    hosted: HostedAgent, proxy: EngineProxy, docker_engine: docker.DockerClient
) -> None:
    """What it keeps (live-restore) goes on and nobody notices; what ended or went away meanwhile is told."""
    kept, ended, removed = (kernel_spec(core) for core in (0, 1, 0))
    await hosted.begin(kept, ended, removed)
    await hosted.run(kept, "kept = 'kept'")
    proxy.stop()
    assert await hosted.say(kept, "print(kept)") == "kept"  # nothing of this goes through the engine
    await asyncio.to_thread(docker_engine.containers.get(name_of(ended)).kill)
    await asyncio.to_thread(docker_engine.containers.get(name_of(removed)).remove, force=True)
    proxy.start()
    fact = await hosted.until_status(ended, Status.TERMINATED)
    assert (fact.reason, fact.exit_code) == ("self-terminated", 137)
    fact = await hosted.until_status(removed, Status.TERMINATED)
    assert (fact.reason, fact.exit_code) == ("container-lost", None)
    assert await hosted.say(kept, "print(kept)") == "kept"
    await hosted.call("acknowledge", [ended.kernel_id, removed.kernel_id])
    await hosted.end(kept)


async def test_orders_while_the_engine_is_away(hosted: HostedAgent, proxy: EngineProxy) -> None:
    """Ends, those of failed starts too, are told when it is sure that nothing is left."""
    ending, starting = kernel_spec(), kernel_spec(1)
    await hosted.begin(ending)
    proxy.stop()
    await hosted.call("create_kernels", [starting])
    await hosted.call("destroy_kernels", [ending.kernel_id], Reason.USER_REQUESTED, forced=True)
    await hosted.until_status(starting, Status.CREATING, Status.PULLING)
    await asyncio.sleep(0.3)
    assert not [fact for fact in hosted.facts if fact.status is Status.TERMINATED]
    proxy.start()
    assert (await hosted.until_status(ending, Status.TERMINATED)).reason == "user-requested"
    fact = await hosted.until_status(starting, Status.TERMINATED)
    assert (fact.reason, fact.retryable) == ("start-failed", True)
    await hosted.call("acknowledge", [ending.kernel_id, starting.kernel_id])


async def test_agent_that_comes_back_while_the_engine_is_away(hosted: HostedAgent, proxy: EngineProxy) -> None:
    """It waits (its keeper starts it again), rather than to take containers for lost."""
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.run(spec, "kept = 'kept'")
    await hosted.kill()
    proxy.stop()
    with pytest.raises(AssertionError, match="not told"):
        await hosted.start(timeout_s=1.5)
    await hosted.kill()
    proxy.start()
    await hosted.start()
    assert await hosted.say(spec, "print(kept)") == "kept"
    await hosted.end(spec)


async def test_engine_that_is_slow_and_fails(hosted: HostedAgent, proxy: EngineProxy) -> None:
    """Every kernel comes or is told as a start that failed, and nothing of any is left."""
    slow, failing = kernel_spec(), kernel_spec(1)
    proxy.delay_s = 0.2
    await hosted.begin(slow)
    proxy.delay_s, proxy.fails = 0.0, random.Random(3)
    await hosted.call("create_kernels", [failing])
    fact = await hosted.until_status(failing, Status.RUNNING, Status.TERMINATED)
    assert fact.status is Status.RUNNING or fact.retryable
    await hosted.end(slow, failing)


async def test_order_that_the_engine_carries_out_late(
    hosted: HostedAgent, proxy: EngineProxy, docker_engine: docker.DockerClient
) -> None:
    """The agent is killed while the engine makes a container, and the next one is told to end it at once."""
    spec = kernel_spec()
    await asyncio.to_thread(docker_engine.ping)
    proxy.delay_s = 0.7
    await hosted.call("create_kernels", [spec])
    await asyncio.to_thread(wait_until, lambda: any("containers/create" in line for line in proxy.asked))
    await hosted.kill()
    proxy.delay_s = 0.0
    await hosted.start()
    await hosted.call("destroy_kernels", [spec.kernel_id], Reason.USER_REQUESTED, forced=True)
    await hosted.until_status(spec, Status.TERMINATED)
    await hosted.call("acknowledge", [spec.kernel_id])


async def test_machine_that_was_rebooted(hosted: HostedAgent, docker_engine: docker.DockerClient) -> None:
    """The containers have ended, or are gone, or nothing is left of their records either."""
    exited, removed, damaged = (kernel_spec(core) for core in (0, 1, 0))
    await hosted.begin(exited, removed, damaged)
    await hosted.kill()
    await asyncio.to_thread(docker_engine.containers.get(name_of(exited)).kill)
    for spec in (removed, damaged):
        await asyncio.to_thread(docker_engine.containers.get(name_of(spec)).remove, force=True)
    (hosted.settings.sessions_dir / damaged.kernel_id / "kernel.json").write_bytes(b"\0" * 200)
    hosted.facts.clear()
    await hosted.start()
    there = {fact.kernel_id for fact in (await hosted.call("inspect")).kernels}
    assert there == {exited.kernel_id, removed.kernel_id}  # the Manager takes the third for lost
    await hosted.call("destroy_kernels", [damaged.kernel_id], Reason.CONTAINER_LOST)
    for spec, expected in (
        (exited, ("self-terminated", 137)), (removed, ("container-lost", None)), (damaged, ("container-lost", None))
    ):  # fmt: skip
        fact = await hosted.until_status(spec, Status.TERMINATED)
        assert (fact.reason, fact.exit_code) == expected
    await hosted.call("acknowledge", [exited.kernel_id, removed.kernel_id])


async def test_labels_that_lie(hosted: HostedAgent, docker_engine: docker.DockerClient, no_python_image: str) -> None:
    """Containers that others made with our labels: no kernel suffers, and what claims to be one can be ended."""
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.kill()
    ours = {f"{LABEL}agent-id": hosted.id, f"{LABEL}home": str(hosted.settings.sessions_dir)}
    claims = [
        {"kernel-id": spec.kernel_id, "attempt": "1", "epoch": "0"},  # that it is the kernel above
        {"kernel-id": "../../etc", "attempt": "1", "epoch": "0"},
        {"kernel-id": str(uuid.uuid4()), "attempt": "-1", "epoch": "x"},
        {},
    ]
    liars = [
        docker_engine.containers.create(
            no_python_image, "sleep 60", labels=ours | {f"{LABEL}{name}": value for name, value in claim.items()}
        )
        for claim in claims
    ]
    try:
        await hosted.start()
        assert await hosted.say(spec, "print(1)") == "1"
        found = {fact.kernel_id: fact.has_record for fact in (await hosted.call("inspect")).kernels}
        assert found == {spec.kernel_id: True, "../../etc": False}
        await hosted.call("destroy_kernels", [KernelId("../../etc")], Reason.AGENT_LOST)
        await hosted.until(lambda: any(fact.kernel_id == "../../etc" for fact in hosted.facts))
        await hosted.end(spec)
    finally:
        for liar in liars:
            try:
                await asyncio.to_thread(liar.remove, force=True)
            except docker.errors.NotFound:
                continue  # the one that was ended

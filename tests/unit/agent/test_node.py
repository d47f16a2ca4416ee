"""What a node has, and how its agent reports it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

from actors.agent.agent import Agent
from actors.agent.backends.base import ComputeBackend
from actors.agent.choosing import choose_backend
from actors.agent.devices import mem
from actors.agent.devices.base import Grant, installed_plugins
from actors.agent.devices.cpu import CpuPlugin
from actors.agent.devices.mem import MemPlugin
from actors.agent.testing.fakes import FakeBackend
from backendai_ray.config import AgentSettings, Settings, load_settings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import AgentNotFound, EngineUnavailable
from backendai_ray.core.ids import AgentId, DeviceId
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM
from tests.unit.agent.conftest import Bench, kernel_spec

GIB = 2**30


def plugin_settings(**changes: Any) -> AgentSettings:
    return AgentSettings(**changes)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 3, 5, 7})


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"1": 1000, "3": 1000, "5": 1000, "7": 1000}),
        ({"reserved_cpu": 1.5}, {"3": 500, "5": 1000, "7": 1000}),
        ({"reserved_cpu": 9}, {}),
        ({"cpu_overcommit": 2.5, "reserved_cpu": 0.2}, {"1": 2000, "3": 2500, "5": 2500, "7": 2500}),
    ],
)
def test_cores(changes: Mapping[str, Any], expected: Mapping[str, int]) -> None:
    assert {d.id: d.capacity for d in CpuPlugin(plugin_settings(**changes)).devices()} == expected


@pytest.mark.parametrize(
    ("parts", "cores", "quota", "threads"),
    [
        ([("2", 1000), ("10", 1000)], (2, 10), 0, "2"),
        ([("2", 1000), ("10", 500)], (2, 10), 1500, "1"),
        ([("0", 1)], (0,), 1, "1"),
        ([], (), 0, None),
    ],
)
def test_cores_of_a_kernel(
    parts: list[tuple[str, int]], cores: tuple[int, ...], quota: int, threads: str | None
) -> None:
    grant = CpuPlugin(plugin_settings()).grant(Allocation.of((CPU, DeviceId(core), units) for core, units in parts))
    assert (grant.cores, grant.cpu_units, grant.defaults.get("OMP_NUM_THREADS")) == (cores, quota, threads)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mem, "total_bytes", lambda: 4 * GIB)
    (device,) = MemPlugin(plugin_settings(reserved_mem="1g", mem_overcommit=2)).devices()
    assert device.capacity == 6 * GIB
    assert MemPlugin(plugin_settings(reserved_mem="8g")).devices() == ()
    assert MemPlugin(plugin_settings()).grant(Allocation.of([(MEM, DeviceId("root"), 5)])).memory_bytes == 5


def test_this_machine() -> None:
    assert 0 < mem.total_bytes() < 2**50
    assert len(CpuPlugin(plugin_settings()).devices()) == len(os.sched_getaffinity(0))
    assert {plugin.name for plugin in installed_plugins(plugin_settings())} >= {"cpu", "mem"}


def test_grants_join() -> None:
    joined = Grant.join([Grant(cores=(3, 1), environ={"A": "1"}), Grant(memory_bytes=7, device_paths=("/dev/x",))])
    assert joined == Grant(cores=(1, 3), environ={"A": "1"}, memory_bytes=7, device_paths=("/dev/x",))


async def test_reports_are_sent_when_something_changed_and_only_then(bench: Bench) -> None:
    await bench.agent()
    assert [(version, ready) for version, _, ready in bench.manager.reports] == [(1, False), (1, True)]
    heartbeats = bench.manager.heartbeats
    await bench.manager.until(lambda: bench.manager.heartbeats > heartbeats + 3)
    assert len(bench.manager.reports) == 2
    bench.backend.sick = "the engine does not answer"
    await bench.manager.until(lambda: bench.manager.reports[-1][0] == 2)
    _, report, ready = bench.manager.reports[-1]
    assert (report.health, report.version, ready) == ("the engine does not answer", 2, True)
    assert report.images == ("python",)  # what was known; it could not be asked
    bench.backend.sick = ""
    await bench.manager.until(lambda: bench.manager.reports[-1][0] == 3)
    assert bench.manager.reports[-1][1].health == ""
    assert report.devices.devices()[0].capacity == 1000


async def test_a_node_has_the_labels_of_its_settings_beside_its_own(bench: Bench) -> None:
    labels = {"disk": "ssd", "isolation": "none"}
    agent_settings = bench.settings.agent.model_copy(update={"labels": labels})
    bench.settings = bench.settings.model_copy(update={"agent": agent_settings})
    await bench.agent()
    reported = bench.manager.reports[-1][1].labels
    assert (reported["disk"], reported["isolation"]) == ("ssd", "full"), "what is found out cannot be talked away"


async def test_manager_that_does_not_know_us_gets_the_report_again(bench: Bench) -> None:
    await bench.agent()
    bench.manager.error = AgentNotFound()
    await bench.manager.until(lambda: bench.manager.refused)
    bench.manager.error = None
    await bench.manager.until(lambda: len(bench.manager.reports) == 3)
    assert bench.manager.reports[-1][::2] == (1, True)


async def test_an_agent_starts_while_the_manager_is_away(bench: Bench) -> None:
    bench.manager.error = ConnectionError("not yet")
    await bench.agent()
    bench.manager.error = None
    await bench.manager.until(lambda: bench.manager.reports and bench.manager.reports[-1][2])


async def test_no_more_kernels_than_allowed(bench: Bench) -> None:
    limited = bench.settings.agent.model_copy(update={"max_kernels": 1})
    bench.settings = bench.settings.model_copy(update={"agent": limited})
    agent: Agent = await bench.agent()
    specs = [kernel_spec(core) for core in range(2)]
    await agent.create_kernels(specs)
    await bench.manager.until_status(specs[0].kernel_id, Status.RUNNING)
    fact = await bench.manager.until_status(specs[1].kernel_id, Status.TERMINATED)
    assert "agent.max_kernels" in fact.message


class _Away(FakeBackend):
    def open(self) -> None:
        raise EngineUnavailable("no engine answers")


@pytest.mark.parametrize(
    ("wanted", "before", "expected"),
    [("auto", set(), "process"), ("auto", {"docker"}, None), ("docker", set(), None), ("auto", {"process"}, "process")],
)
def test_choice_of_the_backend(
    monkeypatch: pytest.MonkeyPatch, wanted: str, before: set[str], expected: str | None
) -> None:
    """Without an engine ``auto`` means process, but never for a node whose kernels are the engine's."""
    opened: list[str] = []

    def backend(name: str) -> Any:
        def make(settings: Settings, agent_id: AgentId) -> ComputeBackend:
            opened.append(name)
            return _Away(settings, agent_id) if name == "docker" else FakeBackend(settings, agent_id)

        return make

    monkeypatch.setattr("actors.agent.choosing.backend_class", backend)
    settings = load_settings(agent={"backend": wanted})
    if expected is None:
        with pytest.raises(EngineUnavailable):
            choose_backend(settings, AgentId("n"), before)
    else:
        choose_backend(settings, AgentId("n"), before)
        assert opened[-1] == expected

"""The task that measures: at a beat, never two at a time, and of everything that runs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.backends.base import Life
from actors.agent.hardware import Hardware
from actors.agent.journal import KernelRecord
from actors.agent.measuring import collector as collector_module
from actors.agent.measuring.collector import UsageCollector, rate
from actors.agent.measuring.reading import NodeFigures
from actors.agent.measuring.telling import UsageTeller
from actors.agent.offload import Offload
from actors.agent.testing.builders import kernel_spec_of
from actors.agent.testing.fakes import FakeBackend
from backendai_ray.config import BusSettings, load_settings
from backendai_ray.core.device_plugins import DeviceUsage
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import EngineUnavailable
from backendai_ray.core.ids import AgentId, DeviceId
from backendai_ray.core.measurements import NodeUsage
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM, SlotName
from backendai_ray.records import decode, encode
from tests.unit.agent.conftest import Bench
from tests.unit.agent.test_hardware import NPU, Npus

SHARES = SlotName("npu.shares")


class Measured(FakeBackend):
    """Says what a test wants."""

    said: Mapping[str, int] = {"cpu_ns": 0, "memory_bytes": 5}
    gate = threading.Event()
    error: Exception | None = None
    asked: list[Life]

    def stats(self, life: Life) -> Mapping[str, int]:
        self.asked.append(life)
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return self.said


class World:
    """A collector with a clock that stands still."""

    def __init__(self, folder: Path) -> None:
        self.backend = Measured(load_settings(data_dir=folder), AgentId("node"))
        self.backend.asked = []
        self.backend.gate = threading.Event()
        self.backend.gate.set()
        self.records: list[KernelRecord] = []
        self.published: list[NodeUsage] = []
        self.now = 100.0
        self.busy_ns = 0
        self.npus = Npus()
        self.hardware = Hardware([self.npus])
        self.hardware.look()
        self.offload = Offload(quick=1, slow=2)
        self.collector = UsageCollector(
            agent_id=AgentId("node"),
            backend=self.backend,
            hardware=self.hardware,
            offload=self.offload,
            records=lambda: self.records,
            interval_s=60,
            disk=folder,
            publish=self.published.append,
            node=lambda _: NodeFigures(cpu_ns=self.busy_ns, memory_bytes=1, memory_total=2),
            clock=lambda: self.now,
        )

    def add(self, *parts: tuple[SlotName, str, int], status: Status = Status.RUNNING) -> KernelRecord:
        spec = kernel_spec_of(Allocation.of((slot, DeviceId(one), units) for slot, one, units in parts))
        record = KernelRecord(agent_id=AgentId("node"), spec=spec, uid=1, status=status, advisory=(SHARES,))
        self.records.append(record)
        return record


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    one = World(tmp_path)
    yield one
    one.backend.gate.set()
    one.hardware.close()
    one.offload.close()


async def test_a_kernel_before_and_after_its_first_measurements(world: World) -> None:
    world.add((CPU, "0", 1500), (MEM, "root", 2**20), (NPU, "n0", 1000))
    (fresh,) = world.collector.usage().kernels
    assert (fresh.measured_at, fresh.cpu_limit, fresh.memory_limit) == (None, 1.5, 2**20)
    assert fresh.advisory == (SHARES,)
    await world.collector.beat()
    world.now, world.backend.said, world.busy_ns = 102.0, {"cpu_ns": 3_000_000_000, "pids": 2}, 1_000_000_000
    await world.collector.beat()
    usage = world.collector.usage()
    (kernel,) = usage.kernels
    assert (kernel.measured_at, kernel.cpu_used, kernel.pids, kernel.memory_bytes) == (102.0, 1.5, 2, None)
    assert [(part.id, part.units, part.utilization) for part in kernel.devices] == [("n0", 1000, 0.5)]
    assert (usage.cpu_used, usage.memory_total, usage.rounds, usage.rounds_skipped) == (0.5, 2, 2, 0)
    assert [one.id for one in usage.devices] == ["n0", "n1"]
    assert world.published[-1] == usage
    assert decode(encode(usage), NodeUsage) == usage, "it travels as a record"


async def test_only_what_runs_is_measured_and_remembered(world: World) -> None:
    one, _ = world.add((CPU, "0", 1000)), world.add((CPU, "1", 1000), status=Status.CREATING)
    await world.collector.beat()
    assert world.backend.asked == [one.life]
    world.records = [replace(one, status=Status.TERMINATED)]
    assert world.collector.usage().kernels == ()
    await world.collector.beat()
    assert world.collector._known == {}
    other = world.add((CPU, "1", 1000))
    assert [k.kernel_id for k in world.collector.usage([other.spec.kernel_id]).kernels] == [other.spec.kernel_id]
    assert world.collector.usage([one.spec.kernel_id]).kernels == ()


async def test_beats_do_not_pile_up_behind_a_slow_engine(world: World) -> None:
    world.add((CPU, "0", 1000))
    world.backend.gate.clear()
    first = world.collector.beat()
    for _ in range(5):
        assert world.collector.beat() is first
        await asyncio.sleep(0)
    world.backend.gate.set()
    await first
    assert len(world.backend.asked) == 1
    assert world.collector.usage().rounds_skipped == 5
    await world.collector.beat()
    assert (world.collector.usage().rounds, world.collector.usage().rounds_skipped) == (2, 5)


async def test_a_round_that_takes_too_long_goes_on_with_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = [world.add((CPU, str(number), 1000)).life for number in range(4)]
    ticks = iter(range(0, 10_000, 25))  # each look at the clock takes 25 s of the beat of 60 s
    monkeypatch.setattr(collector_module.time, "monotonic", lambda: next(ticks))
    await world.collector.beat()
    assert world.backend.asked == lives[:3]
    await world.collector.beat()
    assert world.backend.asked[3:] == [lives[3], *lives[:2]]


async def test_one_kernel_that_cannot_be_measured_costs_no_other(world: World) -> None:
    world.add((CPU, "0", 1000))
    world.backend.error = EngineUnavailable("away")
    await world.collector.beat()
    usage = world.collector.usage()
    assert (usage.rounds, usage.kernels[0].measured_at) == (1, None)
    world.backend.error = RuntimeError("a bug in a backend")
    await world.collector.beat()
    world.backend.error = None
    await world.collector.beat()
    assert world.collector.usage().kernels[0].memory_bytes == 5


async def test_of_a_shared_device_a_kernel_is_told_its_own_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = world.add((SHARES, "n9", 250)), world.add((SHARES, "n9", 500))
    usage = DeviceUsage(
        slot=SHARES, id=DeviceId("n9"), utilization=0.9, memory_used=99, memory_total=100, processes={11: 30, 12: 60}
    )
    monkeypatch.setattr(world.npus, "usage", lambda: [usage])
    groups = {11: f"0::/backendai-ray/{one.life}", 12: "0::/docker/elsewhere"}
    monkeypatch.setattr(collector_module, "group_text", lambda pid: groups[pid])
    await world.collector.beat()
    parts = {k.kernel_id: k.devices[0] for k in world.collector.usage().kernels}
    assert (parts[one.spec.kernel_id].memory_used, parts[one.spec.kernel_id].utilization) == (30, 0.9)
    assert parts[other.spec.kernel_id].memory_used == 0


@pytest.mark.parametrize(
    ("before", "before_at", "now", "now_at", "cores"),
    [
        (0, 0.0, 2_000_000_000, 1.0, 2.0),
        (None, 0.0, 5, 1.0, None),
        (5, 1.0, 9, 1.0, None),
        (9, 0.0, 5, 1.0, None),
        (5, 0.0, None, 1.0, None),
    ],
)
def test_rates(before: int | None, before_at: float, now: int | None, now_at: float, cores: float | None) -> None:
    assert rate(before, before_at, now, now_at) == cores


async def test_an_agent_measures_what_it_runs(bench: Bench) -> None:
    agent = await bench.agent()
    (spec,) = [kernel_spec_of(Allocation.of([(CPU, DeviceId("0"), 1000), (MEM, DeviceId("root"), 2**29)]))]
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    (kernel,) = (await agent.usage()).kernels
    assert (kernel.kernel_id, kernel.memory_limit) == (spec.kernel_id, 2**29)
    assert (await agent.usage([])).kernels == ()


async def test_without_a_bus_nobody_is_told() -> None:
    teller = UsageTeller(BusSettings())
    teller.tell(NodeUsage(agent_id=AgentId("node")))
    await teller.close()
    assert teller._fleeting is None


def test_a_process_names_its_group() -> None:
    text: Callable[[int], str] = collector_module.group_text
    assert ":" in text(os.getpid())
    assert text(2**30) == ""

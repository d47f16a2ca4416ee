"""Device plug-ins: the conformance of the built-in ones, and what the mock makes of a description."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actors.agent.agent import Agent
from actors.agent.backends.base import Launch
from actors.agent.devices.base import Grant, installed_plugins
from actors.agent.devices.cpu import CpuPlugin
from actors.agent.devices.mem import MemPlugin
from actors.agent.devices.mock import MockPlugin
from actors.agent.devices.mock_description import shipped_descriptions
from actors.agent.testing.builders import kernel_spec_of
from actors.agent.testing.device_conformance import DevicePluginConformance
from actors.agent.testing.fakes import FakePlugin
from backendai_ray.config import AgentSettings, load_settings
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, SlotName
from backendai_ray.core.topology import Layout
from bench.nvidia_picks import DGX1_VOLTA
from tests.unit.agent.conftest import AGENT, Bench

GPU, NPU = SlotName("cuda.device"), SlotName("npu.shares")

MIXED = """
accelerators:
  - slot: npu.shares
    model: NPU
    memory: 8g
    devices:
      - {id: n10, numa_node: 1}
      - {id: n2, numa_node: 0, model: Small NPU, memory: 4g}
  - slot: cuda.device
    devices: [{id: g0, pcie: a/b, socket: s0}, {id: g1, pcie: a/b}]
    nvlink: [{between: [g0, g1], lanes: 3}]
"""


def mock(description: str) -> MockPlugin:
    return MockPlugin(AgentSettings.model_validate({"devices": {"mock": description}}))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "accelerators.yaml"
        path.write_text(text)
        return str(path)

    return write


class TestCpu(DevicePluginConformance):
    def make_plugin(self) -> CpuPlugin:
        return CpuPlugin(AgentSettings())


class TestMem(DevicePluginConformance):
    def make_plugin(self) -> MemPlugin:
        return MemPlugin(AgentSettings(reserved_mem="1m"))


@pytest.mark.parametrize("name", shipped_descriptions())
class TestShipped(DevicePluginConformance):
    @pytest.fixture(autouse=True)
    def _choose(self, name: str) -> None:
        self.name = name

    def make_plugin(self) -> MockPlugin:
        return mock(self.name)


class TestMixed(DevicePluginConformance):
    @pytest.fixture(autouse=True)
    def _write(self, write: Any) -> None:
        self.path = write(MIXED)

    def make_plugin(self) -> MockPlugin:
        return mock(self.path)


def test_nothing_is_pretended_unless_it_is_asked_for() -> None:
    plugin = MockPlugin(AgentSettings())
    assert (plugin.slots, plugin.devices(), plugin.grant(Allocation())) == ((), (), Grant())
    assert "mock" in {plugin.name for plugin in installed_plugins(AgentSettings())}


def test_what_a_description_says_is_what_there_is(write: Any) -> None:
    plugin = mock(write(MIXED))
    assert plugin.slots == (GPU, NPU)
    g0, g1, n2, n10 = plugin.devices()
    assert (g0.attributes, g1.attributes) == (
        {"pcie": "a/b", "nvlink": "g1=3", "socket": "s0"},
        {"pcie": "a/b", "nvlink": "g0=3"},
    )
    assert (n2.id, n2.model, n2.numa_node, n2.attributes) == ("n2", "Small NPU", 0, {"memory": str(4 * 2**30)})
    assert (n10.id, n10.model, n10.numa_node, n10.attributes) == ("n10", "NPU", 1, {"memory": str(8 * 2**30)})


def test_a_kernel_learns_its_part_from_its_environment(write: Any) -> None:
    parts = [(NPU, DeviceId("n10"), 1000), (NPU, DeviceId("n2"), 250), (GPU, DeviceId("g1"), 1000)]
    assert mock(write(MIXED)).grant(Allocation.of(parts)).environ == {
        "MOCK_CUDA_DEVICE": "g1",
        "MOCK_CUDA_DEVICE_AMOUNTS": "1",
        "MOCK_CUDA_DEVICE_MEMORY": "0",
        "MOCK_NPU_SHARES": "n2,n10",
        "MOCK_NPU_SHARES_AMOUNTS": "0.25,1",
        "MOCK_NPU_SHARES_MEMORY": f"{2**30},{8 * 2**30}",
    }


def test_the_shipped_dgx1_is_wired_like_the_real_one() -> None:
    shipped = Layout.of(mock("dgx1").devices()).slots[GPU]
    assert shipped.links == Layout.of(DGX1_VOLTA.devices(numa=True)).slots[GPU].links
    assert shipped.numa == (0, 0, 0, 0, 1, 1, 1, 1)


def test_the_shipped_box_of_sixteen_keeps_groups_together() -> None:
    room = DeviceMap(mock("box16").devices())
    found = room.allocate(ResourceSlots({GPU: 4000}))
    assert isinstance(found, Allocation)
    assert set(found.devices(GPU)) == {"gpu0", "gpu1", "gpu2", "gpu3"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Input should be a valid dictionary"),
        ("accelerators: []", r"accelerators: Tuple should have at least 1 item"),
        ("accelerators: [{slot: cuda.device, devices: []}]", r"accelerators\.0\.devices: Tuple should have"),
        ("accelerators: [{slot: cpu, devices: [{id: a}]}]", r"accelerators\.0\.slot: cpu is no accelerator"),
        ("accelerators: [{slot: A B, devices: [{id: a}]}]", r"accelerators\.0\.slot: 'A B' is no slot name"),
        ("accelerators: [{slot: g.device, devices: [{id: 'a,b'}]}]", r"accelerators\.0\.devices\.0\.id: String should"),
        ("accelerators: [{slot: g.device, devices: [{id: a}, {id: a}]}]", r"accelerators\.0\.devices\.1\.id: a is the"),
        ("accelerators: [{slot: g.device, devices: [{id: a, numa: 0}]}]", r"devices\.0\.numa: Extra inputs"),
        ("accelerators: [{slot: g.device, devices: [{id: a, numa_node: -1}]}]", r"devices\.0\.numa_node: Input should"),
        ("accelerators: [{slot: g.device, devices: [{id: a, pcie: a//b}]}]", r"devices\.0\.pcie: String should"),
        ("accelerators: [{slot: g.device, memory: big, devices: [{id: a}]}]", r"\.0\.memory: 'big' is no size"),
        ("accelerators: [{slot: g.device, devices: [{id: a, memory: 1x}]}]", r"devices\.0\.memory: '1x' is no size"),
        (
            "accelerators: [{slot: g.device, devices: [{id: a}], nvlink: [{between: [a, b], lanes: 1}]}]",
            r"accelerators\.0: nvlink\.0\.between: there is no device b",
        ),
        (
            "accelerators: [{slot: g.device, devices: [{id: a}], nvlink: [{between: [a, a], lanes: 1}]}]",
            r"nvlink\.0\.between: a and a are the same, or linked already",
        ),
        (
            "accelerators: [{slot: g.device, devices: [{id: a}, {id: b}], nvlink: [{between: [a, b], lanes: 0}]}]",
            r"nvlink\.0\.lanes: Input should be greater",
        ),
        ("accelerators: [", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(write: Any, text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=r"agent\.devices\.mock: .*" + words) as caught:
        mock(write(text))
    assert caught.value.args


def test_a_description_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"no\.yaml cannot be read"):
        mock(str(tmp_path / "no.yaml"))
    with pytest.raises(InvalidParameter, match=r"'dgx9' is neither .* shipped: box16, dgx1"):
        mock("dgx9")


def test_a_path_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAI_AGENT__DEVICES__MOCK", "mine.yaml")
    assert load_settings().agent.devices.mock == str(tmp_path / "mine.yaml")
    monkeypatch.setenv("BAI_AGENT__DEVICES__MOCK", "dgx1")
    assert load_settings(agent={"reserved_cpu": 1}).agent.devices.mock == "dgx1"


async def test_a_session_that_got_mock_devices_sees_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Launch] = []
    launch = bench.backend.launch
    monkeypatch.setattr(bench.backend, "launch", lambda one: (launched.append(one), launch(one))[1])
    agent = Agent(
        AGENT, bench.settings, bench.manager, backend=bench.backend, plugins=[FakePlugin(), mock("dgx1")],
        connect=bench._connect,
    )  # fmt: skip
    bench.agents = [agent]
    await agent.start()
    report = bench.manager.reports[-1][1]
    room = DeviceMap(report.devices.devices())
    found = room.allocate(ResourceSlots({CPU: 1000, MEM: 2**29, GPU: 2000}))
    assert isinstance(found, Allocation)
    spec = kernel_spec_of(found)
    await agent.create_kernels([spec])
    await bench.manager.until_status(spec.kernel_id, Status.RUNNING)
    assert launched[0].environ["MOCK_CUDA_DEVICE"] == "gpu2,gpu3", "two NVLinks and one switch"
    assert launched[0].environ["MOCK_CUDA_DEVICE_MEMORY"] == f"{2**34},{2**34}"


def test_the_howtos_description_is_one(write: Any) -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "mock-accelerators.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [device.id for device in mock(write(text)).devices()] == ["gpu0", "gpu1", "gpu2", "npu0"]

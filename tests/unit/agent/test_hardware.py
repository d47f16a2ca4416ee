"""Device plug-ins that misbehave, and what a node makes of several."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from actors.agent.devices import contained
from actors.agent.devices.contained import ContainedPlugin
from actors.agent.devices.sysfs import Sysfs
from actors.agent.hardware import Hardware
from actors.agent.testing.fakes import FakePlugin
from backendai_ray.core.device_plugins import DevicePlugin, DeviceUsage, Grant
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.machine import Nic, NumaNode, local_memory_nodes
from backendai_ray.core.slots import CPU, SlotName

NPU = SlotName("npu.device")


class Npus(DevicePlugin):
    """Does what a test wants of it."""

    name = "npus"
    withheld = MappingProxyType({"NPUS": ""})

    def __init__(self, *ids: str) -> None:
        super().__init__(None)
        self.found = [Device(NPU, DeviceId(one), 1000, attributes={"pcie": "a/s"}) for one in ids or ("n0", "n1")]
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    @property
    def slots(self) -> Sequence[SlotName]:
        return (NPU,)

    def _act(self) -> None:
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error

    def devices(self) -> Sequence[Device]:
        self._act()
        return self.found

    def grant(self, allocation: Allocation) -> Grant:
        self._act()
        return Grant(environ={"NPUS": ",".join(allocation.devices(NPU))} if allocation.parts else {})

    def usage(self) -> Sequence[DeviceUsage]:
        self._act()
        return [DeviceUsage(slot=NPU, id=device.id, utilization=0.5) for device in self.found]

    def nics(self) -> Sequence[Nic]:
        return [Nic(name="mlx5_0", kind="infiniband", pcie="a/s")]


def hardware(tmp_path: Path, *plugins: DevicePlugin) -> Hardware:
    return Hardware(plugins, Sysfs(tmp_path))


def of(*ids: str) -> Allocation:
    return Allocation.of((NPU, DeviceId(one), 1000) for one in ids)


def test_what_there_is_and_how_a_kernel_gets_it(tmp_path: Path) -> None:
    node = hardware(tmp_path, FakePlugin(cores=1), Npus())
    facts = node.look()
    assert [device.id for device in facts.devices] == ["0", "root", "n0", "n1"]
    assert [nic.name for nic in facts.machine.nics] == ["mlx5_0"]
    grant = node.grant(Allocation.of([(NPU, DeviceId("n1"), 1000), (CPU, DeviceId("0"), 500)]))
    assert grant.environ == {"NPUS": "n1"}
    assert grant.defaults == {"BACKENDAI_NEAR_NICS": "mlx5_0", "NCCL_IB_HCA": "=mlx5_0"}
    assert node.grant(Allocation()).environ == {"NPUS": ""}, "who has none is kept from all"
    assert [usage.id for usage in node.usage()] == ["n0", "n1"]
    node.close()


def test_a_plugin_that_raises_costs_its_own_devices_alone(tmp_path: Path) -> None:
    npus = Npus()
    node = hardware(tmp_path, FakePlugin(cores=1), npus)
    node.look()
    npus.error = RuntimeError("the driver is confused")
    facts = node.look()
    assert facts.notes == ("its device plug-in npus failed: the driver is confused",)
    assert len(facts.devices) == 4, "once may be bad luck"
    assert len(node.look().devices) == 2
    assert node.usage() == ()
    with pytest.raises(KernelStartFailed, match="plug-in npus failed: the driver is confused") as caught:
        node.grant(of("n0"))
    assert caught.value.details["retryable"]
    assert node.grant(Allocation.of([(CPU, DeviceId("0"), 1000)])) == Grant(environ={"NPUS": ""})
    npus.error = None
    assert (len(node.look().devices), node.facts.notes) == (4, ())


def test_a_plugin_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npus = Npus()
    monkeypatch.setattr(contained, "CALL_TIMEOUT_S", 0.05)
    one = ContainedPlugin(npus, timeout_s=0.05)
    npus.gate.clear()
    one.look()
    assert one.note == "its device plug-in npus has not answered for 0.05 s"
    threads = threading.active_count()
    for _ in range(5):
        one.look()
    assert one.note == "its device plug-in npus does not answer: an earlier call still hangs"
    assert (one.devices, threading.active_count()) == ((), threads)
    npus.gate.set()
    for _ in range(500):
        one.look()
        if one.devices:
            break
        threading.Event().wait(0.01)
    assert (len(one.devices), one.note) == (2, "")
    one.close()


@pytest.mark.parametrize(
    ("devices", "note"),
    [
        ([Device(NPU, DeviceId("a"), 1000)] * 2, "lists the npu.device device a twice"),
        ([Device(CPU, DeviceId("a"), 1000)], "lists a device of cpu, which is none of its slots"),
        ([Device(NPU, DeviceId("a"), 0)], "lists the npu.device device a with a capacity of 0"),
        (["nonsense"], "failed: 'str' object has no attribute 'slot'"),
    ],
)
def test_nonsense_is_not_believed(devices: list[Device], note: str) -> None:
    npus = Npus()
    npus.found = devices
    one = ContainedPlugin(npus)
    one.look()
    assert (one.devices, one.note) == ((), f"its device plug-in npus {note}")
    one.close()


def test_devices_that_no_plugin_has_are_not_granted(tmp_path: Path) -> None:
    node = hardware(tmp_path, FakePlugin(cores=1))
    node.look()
    with pytest.raises(KernelStartFailed, match=r"does not have the npu\.device device n0 now"):
        node.grant(of("n0"))


def test_of_two_devices_with_one_name_the_first_plugins_counts(tmp_path: Path) -> None:
    node = hardware(tmp_path, Npus("n0"), Npus("n0", "n1"))
    assert [device.id for device in node.look().devices] == ["n0", "n1"]
    assert node.grant(of("n0")).environ == {"NPUS": "n0"}, "the second plug-in has nothing of it to give"


def test_the_howtos_plugin_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "write-a-device-plugin.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    plugin = scope["NpuPlugin"](None)
    assert list(plugin.devices()) == []
    grant = plugin.grant(Allocation.of([(NPU, DeviceId("npu1"), 1000), (NPU, DeviceId("npu0"), 1000)]))
    assert grant == Grant(device_paths=("/dev/npu0", "/dev/npu1"), environ={"NPU_VISIBLE_DEVICES": "npu0,npu1"})


TWO_NODES = tuple(
    NumaNode(id=number, cpus=tuple(range(4 * number, 4 * number + 4)), memory_bytes=64 * 2**30) for number in (0, 1)
)


@pytest.mark.parametrize(
    ("cores", "cpu_units", "gib", "nodes"),
    [
        ((0, 1), 0, 32, (0,)),  # half of the cores, half of the memory
        ((0, 1), 0, 33, ()),  # more than its share: others' kernels need what is there
        ((4,), 500, 8, (1,)),
        ((4,), 500, 9, ()),
        ((3, 4), 0, 32, ()),  # on both nodes, which is all there are
        ((0, 99), 0, 1, ()),  # on a core that no node has
        ((), 0, 1, ()),
        ((0,), 0, 0, ()),  # without a limit
    ],
)
def test_memory_next_to_the_cores(cores: tuple[int, ...], cpu_units: int, gib: int, nodes: tuple[int, ...]) -> None:
    assert local_memory_nodes(cores, cpu_units, gib * 2**30, TWO_NODES) == nodes


def test_memory_of_the_only_node() -> None:
    assert local_memory_nodes((0,), 0, 2**30, TWO_NODES[:1]) == ()

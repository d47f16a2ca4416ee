"""The plug-in of NVIDIA GPUs, with a driver that is played."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pynvml
import pytest
from structlog.testing import capture_logs

from actors.agent.devices.contained import ContainedPlugin
from actors.agent.devices.cuda import SHARES, WHOLE, CudaPlugin, mig_files, mig_slot
from actors.agent.devices.cuda_links import nvlink_lanes, ways_by_ancestors
from actors.agent.devices.cuda_mps import Mps
from actors.agent.devices.nvml import Gpu, MigInstance, NoDriver, Nvml
from actors.agent.devices.sysfs import Sysfs
from actors.agent.hardware import Hardware
from actors.agent.testing.device_conformance import DevicePluginConformance
from backendai_ray.config import AgentSettings
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.device_plugins import DeviceRequest, DeviceUsage, Grant, GrantMount
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.slots import ResourceSlots, SlotName
from backendai_ray.core.topology import Layout
from bench.nvidia_picks import DGX1_VOLTA
from tests.unit.agent.fake_nvml import DGX1_BUSES, FakeGpu, FakeInstance, FakeNvml, dgx1
from tests.unit.agent.trees import two_socket_box

GIB = 2**30
SMALL, LARGE = SlotName("cuda.mig-1g-10gb"), SlotName("cuda.mig-3g-40gb")


def plugin(driver: FakeNvml, tmp_path: Path, **cuda: Any) -> CudaPlugin:
    settings = AgentSettings.model_validate({"devices": {"cuda": {"mps_pipe_dir": str(tmp_path / "mps"), **cuda}}})
    return CudaPlugin(settings, nvml=Nvml(driver), sysfs=Sysfs(tmp_path / "sys"))


def mig_box() -> FakeNvml:
    instances = [FakeInstance("1g.10gb", 10 * GIB, 7), FakeInstance("3g.40gb", 40 * GIB, 1)]
    name = "NVIDIA A100-SXM4-80GB"
    return FakeNvml(FakeGpu("06", name, 80 * GIB, mig=instances), FakeGpu("07", name, 80 * GIB))


@pytest.fixture
def mps(tmp_path: Path) -> Path:
    folder = tmp_path / "mps"
    folder.mkdir()
    (folder / "control").touch()
    (folder / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    return folder


class _Conformance(DevicePluginConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path


class TestWhole(_Conformance):
    def make_plugin(self) -> CudaPlugin:
        return plugin(dgx1(), self.tmp_path)


class TestShared(_Conformance):
    def make_plugin(self) -> CudaPlugin:
        return plugin(dgx1(), self.tmp_path, shared=["all"])


class TestSomeShared(_Conformance):
    def make_plugin(self) -> CudaPlugin:
        return plugin(dgx1(), self.tmp_path, shared=["0", "GPU-07"], injection="cdi")


class TestMig(_Conformance):
    def make_plugin(self) -> CudaPlugin:
        return plugin(mig_box(), self.tmp_path)


# ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dgx1_is_wired_as_nvidia_says(tmp_path: Path) -> None:
    devices = plugin(dgx1(), tmp_path).devices()
    assert {device.id for device in devices} == {f"GPU-{bus}" for bus in DGX1_BUSES}
    layout = Layout.of(devices).slots[WHOLE]
    order = [layout.index[DeviceId(f"GPU-{bus}")] for bus in DGX1_BUSES]
    links = tuple(tuple(layout.links[i][j] for j in order) for i in order)
    assert links == Layout.of(DGX1_VOLTA.devices(numa=True)).slots[WHOLE].links
    first, last = (next(device for device in devices if device.id == one) for one in ("GPU-06", "GPU-8a"))
    assert (first.model, first.numa_node, last.numa_node) == ("Tesla V100-SXM2-16GB", 0, 1)
    assert (first.attributes["memory"], first.attributes["nvlink_version"]) == (str(16 * GIB), "2")


def test_sysfs_says_where_gpus_are_when_it_knows(tmp_path: Path) -> None:
    two_socket_box(tmp_path / "sys")
    driver = FakeNvml(FakeGpu("03"), FakeGpu("14"))
    driver.gpus[0].bus, driver.gpus[1].bus = "03", "14"
    one, other = plugin(driver, tmp_path).devices()
    assert (one.numa_node, one.attributes["pcie"]) == (0, "pci0000:00/0000:01:00.0")
    assert (other.numa_node, other.attributes["pcie"]) == (1, "pci0000:10/0000:11:00.0")


def test_gpus_behind_nvswitches_reach_each_other() -> None:
    gpus = [
        Gpu(uuid=str(i), index=i, minor=i, name="", memory_bytes=1, address=f"0000:0{i}:00.0", nvlinks=links)
        for i, links in enumerate([{"switch": 18}, {"switch": 12}, {"0000:ff:00.0": 6}, {}])
    ]
    lanes = nvlink_lanes(gpus)
    assert lanes == {"0": {"1": 12, "2": 6}, "1": {"0": 12, "2": 6}, "2": {"0": 6, "1": 6}, "3": {}}


def test_links_that_are_down_do_not_count(tmp_path: Path) -> None:
    driver = FakeNvml(FakeGpu("06", links=["07", "", "07"]), FakeGpu("07", links=["", "06"]))
    one, other = plugin(driver, tmp_path).devices()
    assert (one.attributes["nvlink"], other.attributes["nvlink"]) == ("GPU-07=2", "GPU-06=2")


def test_common_ancestors_become_ways() -> None:
    levels = {("a", "b"): 10, ("a", "c"): 20, ("b", "c"): 20, ("a", "d"): 30, ("c", "d"): 30, ("a", "e"): 50}
    ways = ways_by_ancestors(["a", "b", "c", "d", "e"], levels)
    assert ways == {
        "a": "nvml-host0/nvml-switch0/nvml-port0",
        "b": "nvml-host0/nvml-switch0/nvml-port0",
        "c": "nvml-host0/nvml-switch0/nvml-port2",
        "d": "nvml-host0",
        "e": "nvml-host4",
    }


def test_mig_instances_are_devices_of_their_profile(tmp_path: Path) -> None:
    whole, small, large = plugin(mig_box(), tmp_path).devices()
    assert (whole.slot, small.slot, large.slot) == (WHOLE, SMALL, LARGE)
    assert small.model == "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
    assert (small.attributes["parent"], small.attributes["memory"]) == ("GPU-06", str(10 * GIB))
    found = DeviceMap((whole, small, large)).allocate(ResourceSlots({SMALL: 1000}))
    assert isinstance(found, Allocation)
    ResourceSlots.parse({SMALL: 1})


@pytest.mark.parametrize(
    ("profile", "slot"),
    [("1g.10gb", "cuda.mig-1g-10gb"), ("1c.3g.20gb", "cuda.mig-1c-3g-20gb"), ("1g.10gb+me", "cuda.mig-1g-10gb-me")],
)
def test_slots_of_profiles(profile: str, slot: str) -> None:
    assert mig_slot(profile) == slot
    ResourceSlots.parse({slot: 1})


def test_a_gpu_with_mig_and_no_instances_is_not_given_out(tmp_path: Path) -> None:
    one = plugin(FakeNvml(FakeGpu("06", mig=[])), tmp_path)
    assert (list(one.devices()), one.note()) == ([], "GPU 0 has MIG on, but no instances")


# ── drivers that are not there, fail or hang ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_it_hides_with_one_line(tmp_path: Path, code: int) -> None:
    with capture_logs() as logs:
        one = plugin(FakeNvml(init_error=code), tmp_path)
        assert [list(one.devices()) for _ in range(3)] == [[], [], []]
    assert [(line["event"], line["log_level"]) for line in logs] == [("cuda.no_driver", "debug")]
    assert (one.note(), one.grant(Allocation()), list(one.usage())) == ("", Grant(), [])


def test_a_machine_without_the_library_does_not_load_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.agent.devices.nvml._LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(NoDriver):
        Nvml().gpus()


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    driver = dgx1()
    assert (list(plugin(driver, tmp_path, enabled=False).devices()), driver.calls) == ([], [])


def test_a_driver_that_does_not_start_says_why(tmp_path: Path) -> None:
    driver = FakeNvml(FakeGpu("06"), init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    one = plugin(driver, tmp_path)
    assert list(one.devices()) == []
    assert one.note().startswith("the NVIDIA driver does not work: ")
    driver.init_error = None
    assert (len(one.devices()), one.note()) == (1, "")


def test_a_gpu_that_fell_off_the_bus_costs_the_others_nothing(tmp_path: Path) -> None:
    driver = FakeNvml(FakeGpu("06"), FakeGpu("07"))
    one = plugin(driver, tmp_path)
    assert len(one.devices()) == 2
    driver.gpus[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    assert [device.id for device in one.devices()] == ["GPU-07"]
    assert one.note().startswith("GPU 0 is left out, since it does not answer: ")
    assert [usage.id for usage in one.usage()] == ["GPU-07"]
    with pytest.raises(LookupError, match="GPU-06 is not there any more"):
        one.grant(Allocation.of([(WHOLE, DeviceId("GPU-06"), 1000)]))


def test_a_driver_that_hangs_is_contained(tmp_path: Path) -> None:
    driver = dgx1()
    node = ContainedPlugin(plugin(driver, tmp_path), timeout_s=0.05)
    node.look()
    assert len(node.devices) == 8
    driver.gate.clear()
    node.look()
    node.look()
    assert (node.devices, node.note) == ((), "its device plug-in cuda does not answer: an earlier call still hangs")
    driver.gate.set()
    node.close()


def test_a_kernel_does_not_start_while_the_driver_fails(tmp_path: Path) -> None:
    driver = FakeNvml(FakeGpu("06"))
    node = Hardware([plugin(driver, tmp_path)], Sysfs(tmp_path))
    (device,) = node.look().devices
    driver.gpus[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    node.look()
    with pytest.raises(KernelStartFailed, match="plug-in cuda failed: the GPU GPU-06 is not there any more"):
        node.grant(Allocation.of([(WHOLE, device.id, 1000)]))
    assert node.grant(Allocation()).environ == {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
    node.close()


def test_names_that_are_no_gpus_are_said(tmp_path: Path) -> None:
    one = plugin(FakeNvml(FakeGpu("06")), tmp_path, shared=["3"])
    assert [device.slot for device in one.devices()] == [WHOLE]
    assert one.note() == "agent.devices.cuda.shared: there is no GPU 3"


# ── how a kernel gets it ──────────────────────────────────────────────────────────────────────────────────────────


def test_whole_gpus_are_asked_of_the_engine_by_uuid(tmp_path: Path) -> None:
    one = plugin(dgx1(), tmp_path)
    parts = [(WHOLE, DeviceId("GPU-85"), 1000), (WHOLE, DeviceId("GPU-0a"), 1000)]
    grant = one.grant(Allocation.of(parts))
    assert grant.environ == {"NVIDIA_VISIBLE_DEVICES": "GPU-0a,GPU-85", "CUDA_VISIBLE_DEVICES": "GPU-0a,GPU-85"}
    assert grant.device_requests == (
        DeviceRequest(
            driver="nvidia",
            device_ids=("GPU-0a", "GPU-85"),
            capabilities=("gpu", "compute", "utility"),
            device_paths=(
                "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia2", "/dev/nvidia4"
            ),
        ),
    )  # fmt: skip
    assert (grant.advisory, grant.mounts, grant.device_paths) == ((), (), ())


def test_cdi_names_where_that_is_configured(tmp_path: Path) -> None:
    one = plugin(mig_box(), tmp_path, injection="cdi")
    (request,) = one.grant(Allocation.of([(SMALL, DeviceId("MIG-06-7-0"), 1000)])).device_requests
    assert (request.driver, request.device_ids, request.capabilities) == ("cdi", ("nvidia.com/gpu=MIG-06-7-0",), ())


def test_the_files_of_a_mig_instance() -> None:
    minors = (
        "config 1\nmonitor 2\ngpu0/gi7/access 66\ngpu0/gi7/ci0/access 67\ngpu0/gi7/ci1/access 68\ngpu1/gi7/access 9"
    )
    instance = MigInstance(uuid="", profile="1g.10gb", memory_bytes=1, gpu_instance=7)
    assert list(mig_files(minors, 0, instance)) == ["/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"]


def test_a_part_of_a_gpu_is_advisory_without_mps(tmp_path: Path) -> None:
    one = plugin(FakeNvml(FakeGpu("06")), tmp_path, shared=["all"])
    grant = one.grant(Allocation.of([(SHARES, DeviceId("GPU-06"), 250)]))
    assert grant.advisory == (SHARES,)
    assert (grant.environ["CUDA_SHARES"], grant.environ["CUDA_SHARES_MEMORY"]) == ("0.25", str(4 * GIB))
    assert not any("MPS" in name for name in grant.environ)
    assert one.grant(Allocation.of([(SHARES, DeviceId("GPU-06"), 1000)])).advisory == (), "all of it is no part"


def test_with_mps_a_part_is_enforced(tmp_path: Path, mps: Path) -> None:
    one = plugin(dgx1(), tmp_path, shared=["all"], mps_shm_dir="/mps/shm")
    parts = [(SHARES, DeviceId("GPU-07"), 500), (SHARES, DeviceId("GPU-06"), 250)]
    grant = one.grant(Allocation.of(parts))
    assert grant.advisory == ()
    assert grant.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert grant.environ["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=4096M,1=8192M"
    assert grant.environ["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/nvidia-mps"
    assert grant.mounts == (
        GrantMount(source=str(mps), target="/tmp/nvidia-mps", read_only=False),
        GrantMount(source="/mps/shm", target="/dev/shm", read_only=False),
    )


def test_a_daemon_that_died_leaves_its_pipes(tmp_path: Path, mps: Path) -> None:
    assert Mps(mps).is_on()
    (mps / "nvidia-cuda-mps-control.pid").write_text("999999999")
    assert not Mps(mps).is_on()
    (mps / "nvidia-cuda-mps-control.pid").unlink()
    assert Mps(mps).is_on()
    assert not Mps(tmp_path / "nowhere").is_on()


# ── how much is in use ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_in_use(tmp_path: Path) -> None:
    driver = mig_box()
    driver.gpus[1].load = (37, 5 * GIB, 250_500, 61)
    driver.gpus[1].processes = {4711: 3 * GIB}
    one = plugin(driver, tmp_path)
    one.devices()
    usage = {usage.id: usage for usage in one.usage()}
    assert usage[DeviceId("GPU-07")] == DeviceUsage(
        slot=WHOLE,
        id=DeviceId("GPU-07"),
        utilization=0.37,
        memory_used=5 * GIB,
        memory_total=80 * GIB,
        power_watts=250.5,
        temperature_c=61.0,
        processes={4711: 3 * GIB},
    )
    small = usage[DeviceId("MIG-06-7-0")]
    assert (small.slot, small.utilization, small.memory_total) == (SMALL, None, 10 * GIB)
    driver.gpus[1].error = pynvml.NVML_ERROR_UNKNOWN
    assert {usage.id: usage.memory_used for usage in one.usage()}[DeviceId("GPU-07")] is None

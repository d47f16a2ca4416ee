"""The plug-in of NVIDIA GPUs with a real driver; skipped where the machine has none, and for no other reason.

    .venv/bin/pytest -s tests/gpu

prints what was found, to be compared by eye with ``nvidia-smi topo -m``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.agent.backends.process.sandbox import Sandbox, probe_abilities, sandbox_command
from actors.agent.devices.cuda import CudaPlugin
from actors.agent.devices.nvml import NoDriver, Nvml
from actors.agent.testing.device_conformance import DevicePluginConformance
from backendai_ray.config import AgentSettings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.topology import Layout


def _has_driver() -> bool:
    try:
        return bool(Nvml().gpus())
    except NoDriver:
        return False


pytestmark = pytest.mark.skipif(not _has_driver(), reason="this machine has no NVIDIA GPU")


class TestRealGpus(DevicePluginConformance):
    def make_plugin(self) -> CudaPlugin:
        return CudaPlugin(AgentSettings())


class TestRealGpusShared(DevicePluginConformance):
    def make_plugin(self) -> CudaPlugin:
        return CudaPlugin(AgentSettings.model_validate({"devices": {"cuda": {"shared": ["all"]}}}))


def smi(*arguments: str) -> str:
    command = [shutil.which("nvidia-smi") or "nvidia-smi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_it_finds_what_nvidia_smi_does() -> None:
    plugin = CudaPlugin(AgentSettings())
    devices = plugin.devices()
    listed = smi("-L")
    for device in devices:
        assert device.id in listed
        print(device.slot, device.id, device.model, "NUMA node", device.numa_node, dict(device.attributes))
    for slot, layout in Layout.of(devices).slots.items():
        print(slot, *layout.links, sep="\n")
    print("note:", plugin.note() or "none")
    rows = smi("--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits").splitlines()
    sizes = {uuid: int(mib) for uuid, mib in (row.split(", ") for row in rows)}
    for device in devices:
        if device.id in sizes:
            assert abs(int(device.attributes["memory"]) // 2**20 - sizes[device.id]) <= 1024


def test_what_is_in_use_is_measured() -> None:
    plugin = CudaPlugin(AgentSettings())
    plugin.devices()
    for usage in plugin.usage():
        print(usage)
        assert usage.memory_total
        assert usage.memory_used is not None


def test_a_sandboxed_kernel_sees_its_own_gpu_alone(tmp_path: Path) -> None:
    plugin = CudaPlugin(AgentSettings())
    device = next(device for device in plugin.devices() if "parent" not in device.attributes)
    grant = plugin.grant(Allocation.of([(device.slot, device.id, device.capacity)]))
    tmp_path.chmod(0o755)
    sandbox = Sandbox(
        hostname="gpu", work=tmp_path, run=tmp_path, runner_dir=tmp_path, files={}, uid=0, shmem_bytes=2**20,
        tmp_bytes=2**20, devices=tuple(path for request in grant.device_requests for path in request.device_paths),
    )  # fmt: skip
    code = "import os; print(sorted(name for name in os.listdir('/dev') if name.startswith('nvidia')))"
    command = sandbox_command(probe_abilities(), sandbox, [sys.executable, "-I", "-c", code])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    print("sandboxed:", probe_abilities().note or "fully", done.stdout)
    if probe_abilities().bwrap:
        numbered = [name for name in ("nvidia" + str(i) for i in range(16)) if f"'{name}'" in done.stdout]
        assert numbered == [f"nvidia{device.attributes['index']}"]

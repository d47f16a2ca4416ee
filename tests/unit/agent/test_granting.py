"""How a grant of devices reaches a container or a sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docker.api.client import APIClient

from actors.agent.backends.base import KernelFolders, Launch, Life, PreparedImage
from actors.agent.backends.docker.containers import create_arguments
from actors.agent.backends.environ import kernel_environ
from actors.agent.backends.process.sandbox import Abilities, Sandbox, sandbox_command
from actors.agent.testing.builders import kernel_spec_of
from backendai_ray.core.device_plugins import DeviceRequest, Grant, GrantMount
from backendai_ray.core.devices import Allocation
from backendai_ray.core.slots import SlotName

NVIDIA = DeviceRequest(
    driver="nvidia", device_ids=("GPU-1", "GPU-2"), capabilities=("gpu", "compute"), device_paths=("/dev/nvidia0",)
)
CDI = DeviceRequest(driver="cdi", device_ids=("nvidia.com/gpu=GPU-1",))


def host_config(grant: Grant) -> dict[str, Any]:
    spec = kernel_spec_of(Allocation())
    launch = Launch(
        life=Life(kernel_id=spec.kernel_id, attempt=1, epoch=0),
        spec=spec,
        image=PreparedImage(reference="python", id="sha", python="/usr/bin/python3"),
        folders=KernelFolders(root=Path("/r"), work=Path("/r/work"), run=Path("/r/run")),
        grant=grant,
        environ={},
        pids_limit=10,
        uid=1000,
        output_buffer_bytes=2**20,
    )
    arguments = create_arguments(
        APIClient(base_url="unix://nowhere", version="1.43"), launch, own={}, runner_dir=Path("/runner"), network=""
    )
    config: dict[str, Any] = arguments["host_config"]
    return config


def test_a_container_engine_is_asked_for_devices_by_their_names() -> None:
    config = host_config(Grant(device_requests=(NVIDIA, CDI), mounts=(GrantMount(source="/mps", target="/tmp/mps"),)))
    nvidia, cdi = config["DeviceRequests"]
    assert nvidia == {
        "Driver": "nvidia", "Count": 0, "DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu", "compute"]],
        "Options": {},
    }  # fmt: skip
    assert (cdi["Driver"], cdi["DeviceIDs"], cdi["Capabilities"]) == ("cdi", ["nvidia.com/gpu=GPU-1"], [])
    assert config["Devices"] is None if "Devices" in config else True, "the engine brings the device files itself"
    mount = config["Mounts"][-1]
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == ("/mps", "/tmp/mps", True)


def test_without_devices_the_engine_is_asked_for_none() -> None:
    assert not host_config(Grant()).get("DeviceRequests")


def test_a_sandbox_shows_the_device_files() -> None:
    sandbox = Sandbox(
        hostname="main1", work=Path("/w"), run=Path("/r"), runner_dir=Path("/x"), files={}, uid=1, shmem_bytes=1,
        tmp_bytes=1, devices=("/dev/nvidia0",), mounts=(GrantMount(source="/mps", target="/tmp/mps", read_only=False),),
    )  # fmt: skip
    words = sandbox_command(Abilities(bwrap="bwrap"), sandbox, ["true"])
    at = words.index("--dev-bind-try")
    assert words[at : at + 3] == ["--dev-bind-try", "/dev/nvidia0", "/dev/nvidia0"]
    assert at > words.index("--dev"), "a fresh /dev would hide it"
    assert words[words.index("/mps") - 1 : words.index("/mps") + 2] == ["--bind", "/mps", "/tmp/mps"]


def test_who_wins_over_whom_in_the_environment() -> None:
    spec = kernel_spec_of(Allocation(), environ={"A": "user", "B": "user"})
    grant = Grant(defaults={"A": "default", "C": "default"}, environ={"B": "device"}, advisory=(SlotName("x.shares"),))
    environ = kernel_environ(spec, grant)
    assert (environ["A"], environ["B"], environ["C"]) == ("user", "device", "default")
    assert environ["BACKENDAI_ADVISORY_SLOTS"] == "x.shares"
    assert kernel_environ(spec, Grant())["BACKENDAI_ADVISORY_SLOTS"] == ""

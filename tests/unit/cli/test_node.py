"""``bai node show``: the drawing of nodes."""

from __future__ import annotations

import json
from textwrap import dedent

from actors.agent.devices.mock import MockPlugin
from actors.contracts import AgentStatus, AgentView, Holding, NodeDetail
from backendai_ray.api.schemas.nodes import NodeDetailView
from backendai_ray.cli.node_drawing import draw_node
from backendai_ray.client import NodeDetail as Shown
from backendai_ray.config import AgentSettings, DeviceSettings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.machine import Machine, Nic, NumaNode
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM, SlotName
from tests.unit.cli.conftest import Bai

GPU, NPU = SlotName("cuda.device"), SlotName("npu.shares")
GIB = 2**30

Part = tuple[SlotName, str, int]


def shown(devices: list[Device], machine: Machine, *holdings: Holding) -> str:
    view = AgentView(
        agent_id=AgentId("box"),
        status=AgentStatus.ALIVE,
        resource_group=ResourceGroupName("default"),
        architecture="x86_64",
        backend="docker",
        capacity={},
        occupied={},
        schedulable=True,
        message="",
        first_contact=0.0,
        lost_at=None,
    )
    detail = NodeDetail(
        view=view, devices=tuple(devices), machine=machine, images=(), labels={}, notes=(), holdings=holdings
    )
    told = NodeDetailView.of_detail(detail).model_dump_json(by_alias=True)
    return "\n".join(draw_node(Shown.model_validate_json(told)))


def holding(session: str, *parts: Part, host: str = "main1") -> Holding:
    return Holding(
        kernel_id=KernelId(f"{session}-{host}"),
        session_id=SessionId(session),
        session_name=session,
        access_key=AccessKey("AK"),
        hostname=host,
        status=Status.RUNNING,
        allocation=Allocation.of((slot, DeviceId(device), units) for slot, device, units in parts),
    )


def cores(numbers: range, node: int | None) -> list[Device]:
    return [Device(CPU, DeviceId(str(number)), 1000, node) for number in numbers]


def test_a_dgx1_with_sessions() -> None:
    plugin = MockPlugin(AgentSettings(devices=DeviceSettings(mock="dgx1")))
    devices = [*cores(range(4), 0), *cores(range(4, 8), 1), Device(MEM, DeviceId("root"), 64 * GIB), *plugin.devices()]
    machine = Machine(
        numa_nodes=(
            NumaNode(id=0, socket="0", cpus=(0, 1, 2, 3), memory_bytes=32 * GIB),
            NumaNode(id=1, socket="1", cpus=(4, 5, 6, 7), memory_bytes=32 * GIB),
        ),
        nics=tuple(plugin.nics())[:2],
    )
    train = [(CPU, "0", 1000), (CPU, "1", 1000), (GPU, "gpu2", 1000), (GPU, "gpu3", 1000), (MEM, "root", 16 * GIB)]
    text = shown(
        devices,
        machine,
        holding("train", *train),
        holding("gang", (CPU, "2", 500)),
        holding("gang", (CPU, "2", 250), host="sub1"),
    )
    top, _, links = text.partition("\nlinks")
    assert top == dedent(
        """\
        box  ALIVE
          docker on x86_64, resource group default
          mem 16g of 64g held: train 16g

        socket 0
          NUMA node 0: cores 0-3, memory 32g
            cores 0-1                                    train
            cores 2                                      gang (main1) 0.5, gang (sub1) 0.25, free 0.25
            cores 3                                      free
            gpu0  cuda.device  Tesla V100-SXM2-16GB 16g  free
            gpu1  cuda.device  Tesla V100-SXM2-16GB 16g  free
            gpu2  cuda.device  Tesla V100-SXM2-16GB 16g  train
            gpu3  cuda.device  Tesla V100-SXM2-16GB 16g  train
            mlx5_0  infiniband 100 Gb/s
            mlx5_1  infiniband 100 Gb/s

        socket 1
          NUMA node 1: cores 4-7, memory 32g
            cores 4-7                                    free
            gpu4  cuda.device  Tesla V100-SXM2-16GB 16g  free
            gpu5  cuda.device  Tesla V100-SXM2-16GB 16g  free
            gpu6  cuda.device  Tesla V100-SXM2-16GB 16g  free
            gpu7  cuda.device  Tesla V100-SXM2-16GB 16g  free
        """
    )
    rows = [line.split() for line in links.splitlines()]
    assert rows[0][:4] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert rows[1] == ["gpu0", "X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS", "PIX", "PHB"]
    assert rows[-2][:2] == ["mlx5_1", "PHB"]
    assert "NV#: that many NVLinks" in links


def test_devices_of_no_known_place_and_parts_of_devices() -> None:
    devices = [*cores(range(2), None), Device(NPU, DeviceId("n0"), 1000, None, "NPU")]
    text = shown(devices, Machine(nics=(Nic(name="eth0", is_up=False),)), holding("a", (NPU, "n0", 250)))
    assert text.splitlines()[2:] == [
        "",
        "on no NUMA node that is known",
        "    cores 0-1            free",
        "    n0  npu.shares  NPU  a 0.25, free 0.75",
        "    eth0  ethernet       down",
    ]


def test_the_command(bai: Bai) -> None:
    done = bai("node", "show", "node-1")
    assert done.code == 0, done.err
    assert "  note: the NVIDIA driver does not work: it is confused" in done.out
    assert "    cores 1                 mine 0.5, free 0.5" in done.out
    told = json.loads(bai("node", "show", "node-1", "--json").out)
    assert (told["id"], told["numa_nodes"][0]["cpus"]) == ("node-1", [0, 1])
    missing = bai("node", "show", "nowhere")
    assert (missing.code, "there is no node 'nowhere'" in missing.err) == (3, True)


def test_info_tells_what_a_session_uses_and_what_nothing_enforces(bai: Bai) -> None:
    assert bai("start", "python", "-t", "work").code == 0
    out = bai("info", "work").out
    assert "main1 uses  0.50 of 1 cores, 1.0 MiB of 512.0 MiB memory, x0 25%" in out
    assert "nothing holds it to its part of x.shares" in out
    told = json.loads(bai("info", "work", "--json").out)
    assert told["usage"][0]["advisory"] == ["x.shares"]

"""What is in use, from the front door: sessions, nodes, and metrics for Prometheus."""

from __future__ import annotations

import re

import httpx
import pytest

from actors.contracts import AgentStatus, AgentView
from backendai_ray.api import create_app
from backendai_ray.api.metrics import METRICS, render
from backendai_ray.config import Settings
from backendai_ray.core.device_plugins import DeviceUsage
from backendai_ray.core.errors import AgentUnavailable
from backendai_ray.core.ids import AgentId, DeviceId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.measurements import KernelUsage, NodeUsage
from backendai_ray.core.slots import SlotName
from tests.support.api_fakes import FakeCluster
from tests.unit.api.conftest import BASE_URL


async def test_what_a_session_uses(client: httpx.AsyncClient, cluster: FakeCluster, session: str) -> None:
    response = await client.get(f"/session/{session}/stats")
    (kernel,) = response.json()["kernels"]
    assert (kernel["agentId"], kernel["hostname"], kernel["cpuUsed"]) == ("node-1", "main1", 0.5)
    assert (kernel["memoryBytes"], kernel["ioReadBytes"], kernel["advisory"]) == (2**20, None, ["cuda.shares"])
    assert kernel["measuredAt"] == "1970-01-01T00:16:40+00:00"


async def test_a_node_that_does_not_answer_is_left_out(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, cluster: FakeCluster, session: str
) -> None:
    cluster.faults.fail_next("agent.usage", AgentUnavailable("away"), times=3)
    assert (await client.get(f"/session/{session}/stats")).json() == {"kernels": []}
    assert (await admin.get("/agents/node-1")).json()["usage"] is None
    response = await admin.get("/metrics")
    assert response.status_code == 200
    assert "backendai_node_up" in response.text
    assert "backendai_kernel" not in response.text


async def test_what_a_node_uses(admin: httpx.AsyncClient) -> None:
    usage = (await admin.get("/agents/node-1")).json()["usage"]
    assert (usage["memoryBytes"], usage["cpuUsed"], usage["rounds"]) == (2**30, None, 3)
    assert usage["devices"][0]["utilization"] == 0.25


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_prometheus_is_answered_without_a_signature(anonymous: httpx.AsyncClient, session: str) -> None:
    response = await anonymous.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert "backendai_sessions_live 1" in lines
    assert 'backendai_node_slot_capacity{node="node-1",slot="cpu"} 8' in lines
    assert 'backendai_node_slot_occupied{node="node-1",slot="cpu"} 1' in lines
    assert 'backendai_device_utilization_ratio{node="node-1",slot="cuda.device",device="GPU-a"} 0.25' in lines
    who = 'node="node-1",session_id="s",session="with \\"quotes\\"",kernel="main1"'
    assert f"backendai_kernel_cpu_seconds_total{{{who}}} 1.5" in lines
    assert not any("backendai_kernel_pids" in line for line in lines), "what is not known is left out"


@pytest.mark.parametrize(
    ("settings", "host", "header", "status"),
    [
        ({}, "127.0.0.1", "", 200),
        ({}, "::1", "", 200),
        ({}, "10.0.0.9", "", 403),
        ({}, "testclient", "", 403),
        ({"advertised_url": "https://cluster.example"}, "127.0.0.1", "", 403),
        ({"metrics_token": "secret"}, "127.0.0.1", "", 401),
        ({"metrics_token": "secret"}, "10.0.0.9", "Bearer wrong", 401),
        ({"metrics_token": "secret"}, "10.0.0.9", "Bearer secret", 200),
    ],
)
async def test_who_may_ask(
    cluster: FakeCluster, tmp_path: object, settings: dict[str, str], host: str, header: str, status: int
) -> None:
    app = create_app(cluster.services(), Settings.model_validate({"data_dir": tmp_path, "api": settings}))
    transport = httpx.ASGITransport(app, client=(host, 1))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
        response = await client.get("/metrics", headers={"Authorization": header} if header else {})
    assert response.status_code == status
    if status != 200:
        assert "api.metrics_token" in response.json()["msg"]


def test_every_metric_is_said_by_somebody_and_well_formed() -> None:
    view = AgentView(
        agent_id=AgentId("n\\1"), status=AgentStatus.ALIVE, resource_group=ResourceGroupName("default"),
        architecture="", backend="", capacity={"mem": 2**30}, occupied={}, schedulable=True, message="",
        first_contact=0.0, lost_at=None,
    )  # fmt: skip
    kernel = KernelUsage(
        kernel_id=KernelId("k"), session_id=SessionId("s"), session_name="a\nb", hostname="main1", cpu_ns=1,
        cpu_limit=1.5, memory_bytes=1, memory_limit=2, io_read_bytes=3, io_write_bytes=4, net_rx_bytes=5,
        net_tx_bytes=6, pids=7,
    )  # fmt: skip
    device = DeviceUsage(
        slot=SlotName("x.device"), id=DeviceId("x"), utilization=1.0, memory_used=0, memory_total=1, power_watts=2.5,
        temperature_c=40.0,
    )  # fmt: skip
    usage = NodeUsage(
        agent_id=view.agent_id, cpu_ns=1, memory_bytes=1, memory_total=2, disk_bytes=3, disk_total=4, net_rx_bytes=5,
        net_tx_bytes=6, devices=(device,), kernels=(kernel,),
    )  # fmt: skip
    text = render([view], {view.agent_id: usage}, 0)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert {re.split(r"[{ ]", line)[0] for line in samples} == {metric.name for metric in METRICS}
    line = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\]|\\.)*",?)+\})? -?[0-9.e+-]+')
    assert [sample for sample in samples if not line.fullmatch(sample)] == []
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)
    assert text.endswith("\n")

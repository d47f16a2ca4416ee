"""Create calls: what they become, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from backendai_ray.core.errors import Unavailable
from backendai_ray.core.sessions import ClusterMode, SessionType
from tests.support.api_fakes import ADMIN, HOLD_IMAGE, USER, FakeCluster

OFFICIAL_BODY: dict[str, Any] = {
    "tag": None,
    "name": "pysdk-someone",
    "config": {
        "mounts": [],
        "environ": {"A": "1"},
        "resources": {"cpu": "2", "mem": "512m"},
        "resource_opts": {"shmem": "32m"},
        "scalingGroup": None,
        "mount_map": {},
        "preopen_ports": ["8080", "9090"],
    },
    "dependencies": [],
    "callback_url": None,
    "architecture": "x86_64",
    "clusterSize": 2,
    "clusterMode": "multi-node",
    "starts_at": None,
    "bootstrap_script": "echo hi",
    "owner_access_key": None,
    "domain": "default",
    "group": "default",
    "type": "interactive",
    "enqueueOnly": False,
    "maxWaitSeconds": 0,
    "reuseIfExists": True,
    "startupCommand": None,
    "image": "python",
}


async def test_the_official_body(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    response = await client.post("/session", json=OFFICIAL_BODY)
    assert response.status_code == 201, response.text
    answer = response.json()
    assert answer["status"] == "RUNNING"
    assert answer["created"] is True
    assert answer["servicePorts"] == []
    assert answer["sessionName"] == "pysdk-someone"
    spec = cluster.manager.submissions[0].spec
    assert spec.id == answer["sessionId"]
    assert spec.slots.human() == {"cpu": "2", "mem": "512m"}
    assert spec.shmem_bytes == 32 * 2**20
    assert spec.cluster_size == 2
    assert spec.cluster_mode is ClusterMode.MULTI_NODE
    assert spec.preopen_ports == (8080, 9090)
    assert spec.environ == {"A": "1"}
    assert spec.bootstrap_script == "echo hi"
    assert (spec.access_key, spec.user) == (USER.access_key, USER.user)


async def test_defaults(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    response = await client.post("/session", json={"image": "python"})
    assert response.status_code == 201
    spec = cluster.manager.submissions[0].spec
    assert spec.slots.human() == {"cpu": "1", "mem": "1g"}
    assert spec.shmem_bytes == 64 * 2**20
    assert spec.name.startswith("session-")
    assert (spec.domain, spec.project, spec.resource_group) == ("default", "default", "default")


async def test_older_names_of_fields(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    body = {"lang": "python", "clientSessionToken": "tok", "config": {"scaling_group": "gpu", "agent_list": None}}
    assert (await client.post("/session", json=body)).status_code == 201
    spec = cluster.manager.submissions[0].spec
    assert (spec.name, spec.resource_group) == ("tok", "gpu")


async def test_a_batch_session_with_everything(client: httpx.AsyncClient, cluster: FakeCluster, session: str) -> None:
    body = {
        "image": "python",
        "name": "job",
        "type": "batch",
        "startupCommand": "true",
        "batch_timeout": "30m",
        "runtime": "IR",
        "starts_at": "2h",
        "priority": 50,
        "dependencies": [session],
        "dependency_failure": "start-anyway",
        "pendingTimeout": "1h",
        "callback_url": "https://example.com/hook",
        "enqueueOnly": True,
    }
    response = await client.post("/session", json=body)
    assert response.status_code == 201, response.text
    spec = cluster.manager.submissions[-1].spec
    assert spec.type is SessionType.BATCH
    assert spec.batch_timeout_s == 1800
    assert spec.runtime == "ir"
    assert spec.priority == 50
    assert spec.depends_on == (cluster.manager.submissions[0].spec.id,)
    assert spec.starts_at is not None
    assert (spec.dependency_failure, spec.pending_timeout_s) == ("start-anyway", 3600)
    assert cluster.manager.submissions[-1].starts_at_as_given == "2h"
    shown = (await client.get("/session/job")).json()
    assert (shown["dependencyFailure"], shown["pendingTimeout"], shown["batchTimeout"]) == ("start-anyway", 3600, 1800)
    assert shown["startsAt"] is not None


async def test_reuse_and_name_in_use(client: httpx.AsyncClient, session: str) -> None:
    first = (await client.get(f"/session/{session}")).json()["sessionId"]
    again = await client.post("/session", json={"image": "python", "name": session})
    assert (again.status_code, again.json()["created"], again.json()["sessionId"]) == (200, False, first)
    refused = await client.post("/session", json={"image": "python", "name": session, "reuseIfExists": False})
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["type"].endswith("/session-already-exists")
    assert problem["data"] == {"existingSessionId": first}
    assert problem["code"] == "name-in-use"


async def test_enqueue_only_does_not_wait_and_a_wait_ends(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    body = {"image": HOLD_IMAGE, "enqueueOnly": True}
    assert (await client.post("/session", json=body)).json()["status"] == "PENDING"
    assert cluster.faults.calls["manager.wait"] == 0
    answer = await client.post("/session", json={"image": HOLD_IMAGE, "maxWaitSeconds": 0.05})
    assert (answer.status_code, answer.json()["status"]) == (201, "TIMEOUT")
    default = await client.post("/session", json={"image": HOLD_IMAGE})
    assert default.json()["status"] == "TIMEOUT"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "image"),
    ({"image": ""}, "image"),
    ({"image": "py thon"}, "image"),
    ({"image": "-v"}, "image"),
    ({"image": "python", "surprise": 1}, "surprise"),
    ({"image": "python", "config": {"surprise": 1}}, "config.surprise"),
    ({"image": "python", "name": ""}, "name"),
    ({"image": "python", "name": "세션"}, "name"),
    ({"image": "python", "name": "../etc"}, "name"),
    ({"image": "python", "name": "a" * 65}, "name"),
    ({"image": "python", "name": "0" * 8 + "-0000-0000-0000-" + "0" * 12}, "name"),
    ({"image": "python", "clusterSize": 0}, "clusterSize"),
    ({"image": "python", "clusterSize": -1}, "clusterSize"),
    ({"image": "python", "clusterSize": 10**9}, "clusterSize"),
    ({"image": "python", "clusterSize": 1.5}, "clusterSize"),
    ({"image": "python", "clusterMode": "sideways"}, "clusterMode"),
    ({"image": "python", "type": "inference"}, "type"),
    ({"image": "python", "type": "x"}, "type"),
    ({"image": "python", "type": "batch"}, "startupCommand"),
    ({"image": "python", "config": {"resources": {"cpu": -1}}}, "config.resources.cpu"),
    ({"image": "python", "config": {"resources": {"cpu": 0}}}, "config.resources.cpu"),
    ({"image": "python", "config": {"resources": {"cpu": True}}}, "config.resources.cpu"),
    ({"image": "python", "config": {"resources": {"mem": "lots"}}}, "config.resources.mem"),
    ({"image": "python", "config": {"resources": {"mem": "9999999e"}}}, "config.resources.mem"),
    ({"image": "python", "config": {"resources": {"bad name": 1}}}, "config.resources"),
    ({"image": "python", "config": {"resource_opts": {"shmem": "2g"}}}, "config.resource_opts.shmem"),
    ({"image": "python", "config": {"resource_opts": {"shmen": "2g"}}}, "config.resource_opts.shmen"),
    ({"image": "python", "config": {"mounts": ["data"]}}, "config.mounts"),
    ({"image": "python", "config": {"mount_map": {"data": "/x"}}}, "config.mount_map"),
    ({"image": "python", "config": {"environ": {"A=B": "1"}}}, "config.environ"),
    ({"image": "python", "config": {"environ": {"A": "\0"}}}, "config.environ"),
    ({"image": "python", "config": {"preopen_ports": [0]}}, "config.preopen_ports"),
    ({"image": "python", "config": {"preopen_ports": ["http"]}}, "config.preopen_ports.0"),
    ({"image": "python", "config": {"scalingGroup": "a b"}}, "config.scalingGroup"),
    ({"image": "python", "priority": 101}, "priority"),
    ({"image": "python", "starts_at": "tomorrow"}, "starts_at"),
    ({"image": "python", "starts_at": "999999999w"}, "starts_at"),
    ({"image": "python", "starts_at": "0001-01-01T00:00:00+14:00"}, "starts_at"),
    ({"image": "python", "batch_timeout": "0"}, "batch_timeout"),
    ({"image": "python", "batch_timeout": "-1"}, "batch_timeout"),
    ({"image": "python", "pending_timeout": 0}, "pending_timeout"),
    ({"image": "python", "pending_timeout": "soon"}, "pending_timeout"),
    ({"image": "python", "dependency_failure": "shrug"}, "dependency_failure"),
    ({"image": "python", "dependencies": ["a"] * 10_000}, "dependencies"),
    ({"image": "python", "dependencies": "other"}, "dependencies"),
    ({"image": "python", "name": "me", "dependencies": ["me"]}, "dependencies"),
    ({"image": "python", "callback_url": "javascript:alert(1)"}, "callback_url"),
    ({"image": "python", "dependencies": ["nobody"]}, "dependencies"),
    ({"image": "python", "tag": "a\nb"}, "tag"),
    ({"image": "python", "maxWaitSeconds": -1}, "maxWaitSeconds"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED, ids=[f"{i}-{field}" for i, (_, field) in enumerate(REFUSED)])
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, cluster: FakeCluster, body: dict[str, Any], field: str
) -> None:
    response = await client.post("/session", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, "invalid-parameter")
    assert problem["details"]["field"] == field
    assert field in problem["msg"]
    assert not cluster.manager.kept


async def test_what_takes_an_administrator(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    for_admins: list[dict[str, Any]] = [
        {"owner_access_key": ADMIN.access_key},
        {"domain": "other"},
        {"group": "other"},
        {"config": {"agentList": ["node-1"]}},
    ]
    for part in for_admins:
        refused = await client.post("/session", json={"image": "python", **part})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), part
        taken = await admin.post("/session", json={"image": "python", **part})
        assert taken.status_code == 201, taken.text
    owned = await admin.post("/session", json={"image": "python", "owner_access_key": USER.access_key})
    assert owned.status_code == 201
    assert cluster.manager.submissions[-1].spec.access_key == USER.access_key


async def test_an_idempotency_key_is_bound_to_caller_method_and_path(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    for who in (client, client, admin):
        await who.post("/session", json={"image": "python"}, headers={"Idempotency-Key": "k1"})
    keys = [s.idempotency_key for s in cluster.manager.submissions]
    assert keys[0] == keys[1] != keys[2]
    assert len(cluster.manager.kept) == 2
    too_long = await client.post("/session", json={"image": "python"}, headers={"Idempotency-Key": "k" * 200})
    assert too_long.json()["details"]["field"] == "Idempotency-Key"


async def test_a_manager_that_dies_between_commit_and_answer(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.fail_next("manager.submitted", Unavailable("died"))
    response = await client.post("/session", json={"image": "python", "name": "once"})
    assert response.status_code in (200, 201)
    assert len(cluster.manager.kept) == 1


async def test_no_json_at_all(client: httpx.AsyncClient) -> None:
    bodies: list[tuple[bytes, str]] = [
        (b"", "body"),
        (b"[1]", ""),
        (b'{"image": NaN}', ""),
        (b'{"image": "python", "priority": Infinity}', ""),
        (b'{"image"', ""),
        (b"\xff\xfe", ""),
        (b'{"image": "\\ud800"}', ""),
        (b"[" * 50_000, ""),
    ]
    for content, field in bodies:
        response = await client.post("/session", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, content[:20]
        assert response.json()["details"].get("field", "") in (field, "body")
    response = await client.post("/session", content=b"image=python", headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["msg"]


async def test_a_body_that_is_too_large_with_and_without_a_length(client: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        for _ in range(1000):
            yield b"x" * 1024

    for content in (b"x" * 65_537, endless()):
        response = await client.post("/session", content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (413, "too-large")

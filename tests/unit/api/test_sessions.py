"""Sessions: list, show, end, restart, rename, history, explain; and the cluster around them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from backendai_ray.core.errors import SessionNotFound, StoreUnavailable, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.sessions import Reason, Status
from tests.support.api_fakes import HOLD_IMAGE, USER, FakeCluster
from tests.support.waiting import wait_until_async


async def test_show(client: httpx.AsyncClient, session: str) -> None:
    shown = (await client.get(f"/session/{session}")).json()
    assert (shown["status"], shown["sessionName"], shown["clusterSize"]) == ("RUNNING", session, 1)
    assert shown["requestedSlots"] == {"cpu": "1", "mem": str(2**30)}
    assert shown["kernels"][0]["hostname"] == "main1"
    by_id = await client.get(f"/session/{shown['sessionId']}")
    assert by_id.json()["sessionId"] == shown["sessionId"]


async def test_a_session_of_somebody_else_is_not_there(
    client: httpx.AsyncClient, admin: httpx.AsyncClient, session: str
) -> None:
    assert (await admin.get(f"/session/{session}")).status_code == 404
    assert (await admin.get(f"/session/{session}?owner_access_key={USER.access_key}")).status_code == 200
    assert (await client.get(f"/session/{session}?owner_access_key=AKIAADMIN")).status_code == 403


@pytest.mark.parametrize("name", ["nobody", "%ED%95%9C", "a%2Fb", "..%2F..", "a" * 65, "a%00b"])
async def test_names_of_nothing(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/session/{name}")).status_code == 404


async def test_list_pages_and_statuses(client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.post("/session", json={"image": "python", "name": f"s{number}"})
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    page = (await client.get("/session?limit=2&offset=1")).json()
    assert (page["total"], [item["sessionName"] for item in page["items"]]) == (4, ["s2", "s1"])
    waiting = (await client.get("/session?status=pending,scheduled")).json()
    assert [item["sessionName"] for item in waiting["items"]] == ["waits"]
    assert (await admin.get("/session")).json()["total"] == 0
    assert (await admin.get("/session?all=true")).json()["total"] == 4
    assert (await client.get("/session?all=true")).status_code == 403
    for query in ("status=SLEEPING", "limit=0", "limit=100000", "offset=-1", "limit=x"):
        response = await client.get(f"/session?{query}")
        assert (response.status_code, response.json()["details"]["field"]) == (400, query.split("=")[0])


async def test_destroy(client: httpx.AsyncClient, session: str) -> None:
    answer = await client.delete(f"/session/{session}?forced=true&recursive=true")
    assert (answer.status_code, answer.json()["status"], answer.json()["stats"]) == (200, "TERMINATED", {})
    assert (await client.delete(f"/session/{session}")).json()["status"] == "TERMINATED"
    assert (await client.delete("/session/nobody")).status_code == 404
    gone = await client.post(f"/session/{session}", json={"code": "1"})
    assert (gone.status_code, gone.json()["code"]) == (409, "session-ended")


async def test_restart_and_rename(client: httpx.AsyncClient, session: str) -> None:
    assert (await client.post(f"/session/{session}", json={"code": "1"})).status_code == 200
    assert (await client.patch(f"/session/{session}")).status_code == 204
    assert (await client.post(f"/session/{session}", json={"code": "1"})).status_code == 200
    assert (await client.post(f"/session/{session}/rename?name=other")).status_code == 204
    assert (await client.post("/session/other", json={"code": "1"})).status_code == 200
    assert (await client.post(f"/session/{session}", json={"code": "1"})).status_code == 404
    for bad in ("", "?name=", "?name=a%20b"):
        response = await client.post(f"/session/other/rename{bad}")
        assert (response.status_code, response.json()["details"]["field"]) == (400, "name")


async def test_changes_carry_an_id_that_their_repetition_shares(
    client: httpx.AsyncClient, session: str, cluster: FakeCluster
) -> None:
    cluster.fail_next("manager.restart", Unavailable())
    await client.patch(f"/session/{session}")
    for _ in range(2):
        await client.delete(f"/session/{session}", headers={"Idempotency-Key": "same"})
    await client.delete(f"/session/{session}", headers={"X-Request-ID": "mine"})
    ids = cluster.manager.request_ids
    assert ids[1] == ids[2]
    assert ids[3].startswith("mine.")
    assert len(set(ids)) == 3


async def test_history_and_logs(client: httpx.AsyncClient, session: str) -> None:
    history = (await client.get(f"/session/{session}/status-history")).json()
    assert list(history["result"]) == ["pending", "scheduled", "preparing", "running"]
    assert {change["after"] for change in history["changes"]} == {"SCHEDULED", "PREPARING", "RUNNING"}
    assert (await client.get(f"/session/{session}/logs")).json() == {"result": {"logs": "nothing yet\n"}}
    session_id = (await client.get(f"/session/{session}")).json()["sessionId"]
    task = await client.get(f"/session/_/logs?taskId={session_id}")
    assert task.text == "nothing yet\n"
    kernels = (await client.get(f"/session/{session}/kernels")).json()
    assert [kernel["role"] for kernel in kernels["items"]] == ["main"]


async def test_dependency_graph_as_the_official_client_reads_it(client: httpx.AsyncClient, session: str) -> None:
    await client.post("/session", json={"image": "python", "name": "second", "dependencies": [session]})
    graph = (await client.get("/session/second/dependency-graph")).json()
    assert graph["status"] == "KernelStatus.RUNNING"
    assert [node["session_name"] for node in graph["depends_on"]] == [session]


async def test_explain(client: httpx.AsyncClient, session: str) -> None:
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    why = (await client.get("/session/waits/explain")).json()
    assert (why["status"], why["reason"]) == ("PENDING", "not-enough")
    assert why["nodes"] == [
        {"agentId": "node-1", "code": "not-enough", "message": "cpu: 1 missing", "shortfall": {"cpu": "1"}}
    ]
    assert why["closest"] == why["nodes"][0]
    assert (why["position"], why["waiting"], why["behind"], why["fragmentation"]) == (3, 5, "first", "across-nodes")
    assert why["estimate"] == {
        "at": "2001-09-09T01:46:40+00:00", "notBefore": None, "basis": "time-limits", "message": "at its time"
    }  # fmt: skip
    assert (why["placement"], why["policy"], why["warning"]) == ([], "fifo", "")
    runs = (await client.get(f"/session/{session}/explain")).json()
    assert (runs["estimate"], runs["position"]) == (None, None)
    assert (runs["status"], runs["reason"], runs["nodes"]) == ("RUNNING", "started", [])


async def test_moves(client: httpx.AsyncClient, admin: httpx.AsyncClient, session: str) -> None:
    await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    found = (await client.post("/session/waits/consolidate", json={"min_runtime_s": 7})).json()
    assert found.pop("sessionId")
    assert found == {
        "sessionName": "waits",
        "message": "it can start",
        "moves": [{"sessionId": f"of-{USER.access_key}", "fromAgents": ["node-1"], "toAgents": ["node-2"], "ranS": 7}],
        "agents": ["node-1"],
        "applied": False,
    }
    path = f"/session/waits/consolidate?owner_access_key={USER.access_key}"
    done = (await admin.post(path, json={"apply": True})).json()
    assert (done["applied"], done["moves"][0]["sessionId"]) == (True, "of-anybody")
    runs = (await client.post(f"/session/{session}/consolidate", json={})).json()
    assert (runs["moves"], runs["message"]) == ([], "nothing has to be moved: the session is RUNNING")
    for wrong in ({"max_moves": 0}, {"max_moves": 9}, {"grace_s": -1}, {"apply": "perhaps"}):
        answer = await client.post("/session/waits/consolidate", json=wrong)
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, next(iter(wrong)))


async def test_what_stops_waiting_while_it_is_explained(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    """1. It waits. 2. Asking the scheduler runs a pass, which places it. 3. The answer is of its new status."""
    created = await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})

    async def place_it(group: ResourceGroupName, session_id: SessionId) -> Explanation:
        cluster.manager.move(session_id, Status.SCHEDULED, Reason.PLACED)
        raise SessionNotFound(f"session {session_id} is not waiting")

    cluster.sokovan.explain = place_it  # type: ignore[method-assign]
    why = (await client.get("/session/waits/explain")).json()
    assert (why["sessionId"], why["status"], why["reason"]) == (created.json()["sessionId"], "SCHEDULED", "placed")


async def test_what_the_scheduler_told(client: httpx.AsyncClient, session: str) -> None:
    [entry] = (await client.get(f"/session/{session}/scheduling-history")).json()["items"]
    assert (entry["number"], entry["verdict"], entry["code"], entry["message"]) == (1, "refused", "not-enough", "no")
    assert (entry["at"], entry["cause"]) == ("1970-01-01T00:00:01+00:00", "p")
    assert (await client.get("/session/nobody/scheduling-history")).status_code == 404


async def test_a_dry_run_makes_nothing(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    told = (await client.post("/session/_/dry-run", json={"image": "python", "name": "small"})).json()
    assert (told["sessionId"], told["sessionName"], told["status"]) == (None, "small", "PENDING")
    assert (told["reason"], told["message"]) == ("placeable", "the next pass places it on node-1")
    assert [(kernel["agentId"], kernel["devices"]) for kernel in told["placement"]] == [
        ("node-1", {"cpu": {"0": 1000}})
    ]
    assert told["estimate"]["basis"] == "now"
    large = {"image": "python", "config": {"resources": {"cpu": 2}}}
    told = (await client.post("/session/_/dry-run", json=large)).json()
    assert (told["reason"], told["placement"], told["closest"]["agentId"]) == ("not-enough", [], "node-1")
    assert not cluster.manager.kept
    assert not cluster.manager.submissions


async def test_a_dry_run_is_refused_as_its_submit_would_be(client: httpx.AsyncClient, session: str) -> None:
    for body, status in (
        ({"image": "python", "name": session, "reuseIfExists": False}, 409),
        ({"image": "python", "config": {"agentList": ["node-1"]}}, 403),
        ({"image": "python", "dependencies": ["nobody"]}, 400),
        ({"image": "python", "clusterSize": 0}, 400),
        ({"image": "python", "nonsense": 1}, 400),
        ({}, 400),
    ):
        rehearsed = await client.post("/session/_/dry-run", json=body)
        refused = await client.post("/session", json=body)
        assert rehearsed.status_code == refused.status_code == status
        assert (rehearsed.json()["code"], rehearsed.json()["msg"]) == (refused.json()["code"], refused.json()["msg"])
    reused = (await client.post("/session/_/dry-run", json={"image": "python", "name": session})).json()
    assert (reused["sessionName"], reused["status"]) == (session, "RUNNING")
    assert reused["sessionId"]


async def test_the_cluster(client: httpx.AsyncClient, admin: httpx.AsyncClient, session: str) -> None:
    assert (await client.get("/agents")).status_code == 403
    agents = (await admin.get("/agents")).json()
    assert agents["items"][0]["availableSlots"] == {"cpu": "8", "mem": str(2**34)}
    [default, *others] = (await client.get("/runtimes?image=r")).json()["items"]
    assert default == {"name": "ir", "language": "R", "title": "R", "isDefault": True}
    assert [(one["name"], one["isDefault"]) for one in others] == [("python", False), ("shell", False)]
    assert (await client.get("/runtimes?image=other")).status_code == 404
    assert (await client.post("/session", json={"image": "r", "runtime": "no runtime"})).status_code == 400
    [group] = (await client.get("/scaling-groups?group=default")).json()["scaling_groups"]
    assert (group["name"], group["policy"], group["waiting"]) == ("default", "fifo", 2)
    assert group["warning"] == "policy custom failed; fifo decides in its place"
    assert (await client.get("/config/resource-slots")).json() == {"cpu": "count", "mem": "bytes"}
    assert (await client.get("/manager/announcement")).json() == {"enabled": False, "message": ""}
    status = (await client.request("GET", "/manager/status", json={"status": "running"})).json()
    assert (status["status"], status["active_sessions"]) == ("running", 1)
    assert (await client.get(f"/stream/session/{session}/apps")).json() == []


async def test_quotas(client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    limits = {"slots": {"cpu": "4", "mem": "2g", "cuda.device": 0}, "sessions": 3}
    assert (await client.put("/quotas/user/user@example.com", json=limits)).status_code == 403
    answer = await admin.put("/quotas/user/user@example.com", json=limits)
    assert answer.json() == {
        "scope": "user",
        "name": "user@example.com",
        "slots": {"cpu": "4", "mem": str(2**31), "cuda.device": "0"},
        "sessions": 3,
        "pending": None,
        "used_slots": {"cpu": "1.5"},
        "used_sessions": 2,
        "used_pending": 1,
    }
    assert (await admin.put("/quotas/project/other/ml", json={"pending": 5})).json()["name"] == "other/ml"
    assert len((await admin.get("/quotas")).json()["items"]) == 2
    assert [one["scope"] for one in (await client.get("/quotas")).json()["items"]] == ["user"]
    assert (await admin.delete("/quotas/user/user@example.com")).status_code == 204
    assert (await client.get("/quotas")).json() == {"items": []}
    for path, body, field in (
        ("/quotas/team/x", limits, "kind"),
        ("/quotas/user/x", {}, "slots"),
        ("/quotas/user/x", {"slots": {"cpu": "much"}}, "slots.cpu"),
        ("/quotas/user/x", {"sessions": -1}, "sessions"),
        ("/quotas/user/x", {"gpus": 1}, "gpus"),
    ):
        assert (await admin.put(path, json=body)).json()["details"]["field"] == field


async def test_health(anonymous: httpx.AsyncClient, cluster: FakeCluster) -> None:
    assert (await anonymous.get("/health/livez")).status_code == 200
    assert (await anonymous.get("/health/readyz")).status_code == 200
    cluster.fail_next("manager.groups", Unavailable("the manager is away"))
    response = await anonymous.get("/health/readyz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_a_manager_that_restarts_is_waited_for_and_a_store_that_is_away_is_not(
    client: httpx.AsyncClient, cluster: FakeCluster, session: str
) -> None:
    cluster.fail_next("manager.session", Unavailable("restarting"), times=3)
    assert (await client.get(f"/session/{session}")).status_code == 200
    cluster.fail_next("manager.session", StoreUnavailable("no disk"))
    response = await client.get(f"/session/{session}")
    assert (response.status_code, response.json()["code"]) == (503, "store-unavailable")


async def test_a_question_is_held_until_the_status_is_another(client: httpx.AsyncClient, cluster: FakeCluster) -> None:
    created = await client.post("/session", json={"image": HOLD_IMAGE, "name": "waits", "enqueueOnly": True})
    unchanged = await client.get("/session/waits?wait=RUNNING,ERROR&wait_s=0.05")
    assert unchanged.json()["status"] == "PENDING"
    asking = asyncio.create_task(client.get("/session/waits?wait=running&wait_s=20"))
    await wait_until_async(lambda: _asked(cluster, "manager.wait", 2))
    cluster.manager.move(created.json()["sessionId"], Status.RUNNING, Reason.STARTED)
    assert (await asking).json()["status"] == "RUNNING"
    assert (await client.get("/session/waits?wait=RUNNING&wait_s=20")).json()["status"] == "RUNNING"
    for query, field in (("wait=SLEEPING", "wait"), ("wait=RUNNING&wait_s=1000", "wait_s")):
        assert (await client.get(f"/session/waits?{query}")).json()["details"]["field"] == field


async def _asked(cluster: FakeCluster, call: str, times: int) -> bool:
    return cluster.faults.calls[call] >= times

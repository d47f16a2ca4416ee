"""One node, from the front door."""

from __future__ import annotations

import httpx


async def test_all_of_a_node(admin: httpx.AsyncClient, session: str) -> None:
    response = await admin.get("/agents/node-1")
    assert response.status_code == 200
    node = response.json()
    assert (node["id"], node["status"], node["notes"]) == ("node-1", "ALIVE", ["one thing is not as it could be"])
    assert [device["label"] for device in node["devices"]] == ["0", "GPU0", "GPU1"]
    assert node["links"] == {
        "names": ["GPU0", "GPU1", "eth0"],
        "rows": [["X", "PIX", "SYS"], ["PIX", "X", "SYS"], ["SYS", "SYS", "X"]],
    }
    (holding,) = node["holdings"]
    assert (holding["sessionName"], holding["devices"]) == (session, {"cpu": {"0": 1000}})
    assert node["numaNodes"][0]["cpus"] == [0, 1]


async def test_who_may_see_it(client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    assert (await client.get("/agents/node-1")).status_code == 403
    missing = await admin.get("/agents/node-9")
    assert (missing.status_code, missing.json()["code"]) == (404, "agent-not-found")

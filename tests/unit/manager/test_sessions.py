"""Finding sessions, waiting for them, and changing them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from actors.testing import OWNER, FakeAgent, FakeCluster
from backendai_ray.core.errors import (
    AgentUnavailable,
    InvalidParameter,
    KernelNotFound,
    NameInUse,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
)
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.sessions import Reason, Session, Status


def agent_of(cluster: FakeCluster, session: Session) -> FakeAgent:
    return cluster.agents[session.main.agent_id or AgentId("")]


async def end(cluster: FakeCluster, session: Session) -> None:
    agent = agent_of(cluster, session)
    await cluster.tell(agent, [agent.end(session.main.id, log_tail=b"kept log")])
    await cluster.settle()


async def test_found_by_name_id_and_beginning_of_id(cluster: FakeCluster) -> None:
    session = (await cluster.submit("work")).session
    for text in ("work", session.id, session.id.upper(), session.id[:35]):
        assert (await cluster.manager.session(OWNER, text)).id == session.id
    for owner, text in ((OWNER, "nothing"), (OWNER, session.id[:7]), (AccessKey("AKIAOTHER"), session.id)):
        with pytest.raises(SessionNotFound):
            await cluster.manager.session(owner, text)


async def test_a_name_means_the_live_one_and_else_the_last_one(cluster: FakeCluster) -> None:
    first = await cluster.running("work")
    await end(cluster, first)
    assert (await cluster.manager.session(OWNER, "work")).id == first.id
    second = (await cluster.submit("work")).session
    assert (await cluster.manager.session(OWNER, "work")).id == second.id
    await cluster.terminate(second)
    assert (await cluster.manager.session(OWNER, "work")).id == second.id


async def test_the_way_to_a_session(cluster: FakeCluster) -> None:
    waiting = (await cluster.submit("waiting")).session
    with pytest.raises(SessionNotReady, match="PENDING"):
        await cluster.manager.route(OWNER, "waiting")
    await cluster.terminate(waiting)
    session = await cluster.running("work")
    route = await cluster.manager.route(OWNER, "work")
    assert (route.kernel_id, route.agent_id, route.epoch) == (session.main.id, session.main.agent_id, 0)
    await cluster.terminate(session)
    with pytest.raises(SessionEnded, match="TERMINATING"):
        await cluster.manager.route(OWNER, "work")


async def test_waiting_ends_with_the_status_or_the_end(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    waits = [
        asyncio.create_task(cluster.manager.wait(session.id, ["RUNNING"], 10)),
        asyncio.create_task(cluster.manager.wait(session.id, ["TERMINATED"], 10)),
    ]
    await asyncio.sleep(0)
    await cluster.schedule()
    agent = agent_of(cluster, await cluster.get(session.id))
    await cluster.tell(agent, [agent.start(session.main.id)])
    await cluster.tell(agent, [agent.end(session.main.id)])
    assert (await waits[0]).status is Status.RUNNING  # although it has ended since
    assert (await waits[1]).status is Status.TERMINATED
    assert (await cluster.manager.wait(session.id, ["RUNNING"], 10)).status is Status.TERMINATED
    with pytest.raises(SessionNotFound):
        await cluster.manager.wait(SessionId("nobody"), [], 10)


async def test_waiting_in_vain_returns_what_there_is(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    assert (await cluster.manager.wait(session.id, ["RUNNING"], 0.01)).status is Status.PENDING
    assert (await cluster.manager.wait(session.id, ["RUNNING"], 0)).status is Status.PENDING


async def test_a_rename_is_known_to_the_node_before_it_is_acknowledged(cluster: FakeCluster) -> None:
    session = await cluster.running("work")
    renamed = await cluster.manager.rename(OWNER, "work", "play", request_id="r")
    assert (renamed.spec.name, renamed.epoch) == ("play", 1)
    assert agent_of(cluster, session).calls[-1] == ("route", (session.main.id, "play", 1))
    assert (await cluster.manager.session(OWNER, "play")).id == session.id
    assert (await cluster.submit("work")).created
    again = await cluster.manager.rename(OWNER, "play", "play", request_id="r")
    assert again.epoch == 1


async def test_names_that_cannot_be_taken(cluster: FakeCluster) -> None:
    session = await cluster.running("work")
    await cluster.submit("other")
    with pytest.raises(NameInUse):
        await cluster.manager.rename(OWNER, "work", "other", request_id="r")
    with pytest.raises(InvalidParameter):
        await cluster.manager.rename(OWNER, "work", "no/name", request_id="r")
    await end(cluster, session)
    with pytest.raises(SessionEnded):
        await cluster.manager.rename(OWNER, session.id, "late", request_id="r")


async def test_two_renames_to_one_name_at_once(cluster: FakeCluster) -> None:
    for name in ("one", "two"):
        await cluster.submit(name)
    results = await asyncio.gather(
        *(cluster.manager.rename(OWNER, name, "same", request_id="r") for name in ("one", "two")),
        return_exceptions=True,
    )
    assert [isinstance(result, NameInUse) for result in results].count(True) == 1


async def test_a_rename_that_the_node_does_not_hear(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.manager.manager.ROUTE_WAIT_S", 0.05)
    session = await cluster.running("work")
    agent = agent_of(cluster, session)
    agent.is_down = True
    with pytest.raises(AgentUnavailable, match="the change is saved"):
        await cluster.manager.rename(OWNER, "work", "play", request_id="r")
    agent.is_down = False
    await cluster.settle()
    assert agent.epochs[session.main.id] == 1


async def test_a_restart(cluster: FakeCluster) -> None:
    session = await cluster.running("work")
    agent = agent_of(cluster, session)
    restarting = await cluster.manager.restart(OWNER, "work", request_id="r1")
    assert restarting.status is Status.RESTARTING
    assert agent.calls[-1] == ("restart", ([session.main.id], 1))
    with pytest.raises(SessionNotReady):
        await cluster.manager.route(OWNER, "work")
    await cluster.tell(agent, [agent.start(session.main.id)])
    again = await cluster.get(session.id)
    assert (again.status, again.epoch) == (Status.RUNNING, 1)
    repeated = await cluster.manager.restart(OWNER, "work", request_id="r1")
    assert (repeated.status, repeated.epoch) == (Status.RUNNING, 1)
    assert (await cluster.manager.restart(OWNER, "work", request_id="r2")).epoch == 2


async def test_word_of_the_old_container_does_not_end_a_restart(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The order does not reach the agent. 2. Its inspection shows the old container running. 3. It hears at last."""
    monkeypatch.setattr("actors.manager.manager.ROUTE_WAIT_S", 0.05)
    session = await cluster.running("work")
    agent = agent_of(cluster, session)
    agent.is_down = True
    with pytest.raises(AgentUnavailable):
        await cluster.manager.restart(OWNER, "work", request_id="r")
    old = agent.kernels[session.main.id]
    await cluster.tell(agent, [old])
    assert (await cluster.get(session.id)).status is Status.RESTARTING
    agent.is_down = False
    agent.is_quick = True
    await cluster.pass_time(8)
    again = await cluster.get(session.id)
    assert again.status is Status.RUNNING
    assert again.main.container_id != old.container_id


async def test_a_restart_survives_the_manager(cluster: FakeCluster) -> None:
    session = await cluster.running("work")
    agent = agent_of(cluster, session)
    agent.loses_orders = 1
    await cluster.manager.restart(OWNER, "work", request_id="r")
    await cluster.restart()
    await cluster.settle()
    assert agent.epochs[session.main.id] == 1
    await cluster.tell(agent, [agent.start(session.main.id)])
    assert (await cluster.get(session.id)).status is Status.RUNNING


async def test_ending_with_what_waits_for_it(cluster: FakeCluster) -> None:
    first = await cluster.running("first")
    second = (await cluster.submit(depends_on=(first.id,))).session
    third = (await cluster.submit(depends_on=(second.id,))).session
    await cluster.terminate(first, recursive=True)
    for session in (second, third):
        ended = await cluster.get(session.id)
        assert (ended.status, ended.reason) == (Status.CANCELLED, Reason.USER_REQUESTED)
    assert (await cluster.terminate(second)).status is Status.CANCELLED  # twice is harmless


async def test_force_reaches_a_session_that_is_ending_already(cluster: FakeCluster) -> None:
    session = await cluster.running()
    await cluster.terminate(session)
    await cluster.terminate(session, forced=True)
    await cluster.settle()
    assert agent_of(cluster, session).names_of_calls().count("destroy") == 2


async def test_logs_of_the_living_and_of_the_dead(cluster: FakeCluster) -> None:
    waiting = (await cluster.submit("waiting")).session
    assert await cluster.manager.logs(OWNER, "waiting", None) == b""
    await cluster.terminate(waiting)
    session = await cluster.running("work")
    assert await cluster.manager.logs(OWNER, "work", None) == b"live log"
    with pytest.raises(KernelNotFound):
        await cluster.manager.logs(OWNER, "work", KernelId("other"))
    await end(cluster, session)
    assert await cluster.manager.logs(OWNER, "work", session.main.id) == b"kept log"


async def test_a_dependency_graph(cluster: FakeCluster) -> None:
    one = (await cluster.submit("one")).session
    two = (await cluster.submit("two", depends_on=(one.id,))).session
    await cluster.submit("three", depends_on=(one.id, two.id))
    graph = await cluster.manager.dependency_graph(OWNER, "three")
    assert graph["session_name"] == "three"
    assert [below["session_name"] for below in graph["depends_on"]] == ["one", "two"]
    assert graph["depends_on"][1]["depends_on"][0]["session_id"] == one.id


async def test_a_session_is_unfolded_where_the_official_client_meets_it_first(cluster: FakeCluster) -> None:
    """From the top down: it looks at no session twice, so what is unfolded later only would be missed."""
    last = (await cluster.submit("last")).session
    shared = (await cluster.submit("shared", depends_on=(last.id,))).session
    first = (await cluster.submit("first", depends_on=(shared.id,))).session
    await cluster.submit("top", depends_on=(first.id, shared.id))
    graph = await cluster.manager.dependency_graph(OWNER, "top")
    seen: list[str] = []

    def look(node: Mapping[str, Any]) -> None:
        seen.append(node["session_name"])
        for child in node["depends_on"]:
            if child["session_name"] not in seen:
                look(child)

    look(graph)
    assert seen == ["top", "first", "shared", "last"]
    again = graph["depends_on"][1]
    assert (again["session_name"], again["depends_on"], again["is_complete"]) == ("shared", [], False)


async def test_a_deep_and_wide_dependency_graph_ends(cluster: FakeCluster) -> None:
    """Each session depends on the two before it: unfolded in full, the tree would never end."""
    before: list[SessionId] = []
    for number in range(100):
        before.append((await cluster.submit(f"s{number}", depends_on=tuple(before[-2:]))).session.id)
    graph = await cluster.manager.dependency_graph(OWNER, "s99")
    nodes, depth, level = 0, 0, [graph]
    while level:
        nodes, depth = nodes + len(level), depth + 1
        level = [child for node in level for child in node["depends_on"]]
    assert nodes < 1000
    assert depth <= 65
    assert graph["is_complete"]
    json.dumps(graph)


async def test_credentials_are_made_once(cluster: FakeCluster) -> None:
    first = await cluster.manager.bootstrap_credentials()
    assert first.access_key.startswith("AKIA")
    assert (len(first.access_key), len(first.secret_key), first.is_admin) == (20, 40, True)
    assert await cluster.manager.keypair(first.access_key) == first
    assert await cluster.manager.keypair("AKIANOBODY") is None
    await cluster.restart()
    assert await cluster.manager.bootstrap_credentials() == first

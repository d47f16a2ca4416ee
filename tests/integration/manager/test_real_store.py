"""The Manager on the real store: bursts, restarts and a database that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from actors.manager.ports import OpenStore
from actors.testing import GROUP, OWNER, FakeAgent, FakeCluster
from backendai_ray.core.ids import SessionId
from backendai_ray.core.sessions import SessionType, Status
from backendai_ray.core.slots import CPU, ResourceSlots
from backendai_ray.store import Store
from tests.support.waiting import wait_until_async


def opener(folder: Path) -> OpenStore:
    return partial(Store.open, f"sqlite:///{folder / 'store.db'}")


async def finish_all(cluster: FakeCluster) -> int:
    """Schedule and finish batch sessions until none is left; returns how many passes it took."""
    passes = 0
    while (await cluster.schedule()).placed:
        passes += 1
        for agent in cluster.agents.values():
            done = [agent.finish_startup(kernel_id, 0) for kernel_id in agent.alive()]
            await cluster.tell(agent, done)
        await cluster.settle()
        await cluster.check()
    return passes


async def test_two_hundred_at_once_with_room_for_eight(tmp_path: Path) -> None:
    """All run, in order; devices held twice would raise in the fake agent; afterwards nothing is used."""
    agent = FakeAgent("a1", cores=8)
    agent.is_quick = True
    cluster = await FakeCluster(agent, open_store=opener(tmp_path)).start()
    submitted = await asyncio.gather(
        *(cluster.submit(type=SessionType.BATCH, startup_command="true", key=f"k{i}") for i in range(200))
    )
    assert await finish_all(cluster) == 25
    ended = [await cluster.get(one.session.id) for one in submitted]
    assert {session.status for session in ended} == {Status.TERMINATED}
    started = [session.started_at or 0.0 for session in sorted(ended, key=lambda s: s.created_at)]
    assert started == sorted(started)
    assert agent.kernels == {}
    assert not (await cluster.manager.agents())[0].occupied
    await cluster.kill()


async def test_scheduling_again_with_a_thousand_running(tmp_path: Path) -> None:
    agents = [FakeAgent(f"a{i}", cores=101) for i in range(10)]
    for agent in agents:
        agent.is_quick = True
    cluster = await FakeCluster(*agents, open_store=opener(tmp_path)).start()
    await asyncio.gather(*(cluster.submit() for _ in range(1000)))
    assert len((await cluster.schedule()).placed) == 1000
    waiting = (await cluster.submit("waiting")).session
    before = {agent.agent_id: agent.alive() for agent in agents}
    await cluster.kill()
    await cluster.restart()
    assert (await cluster.schedule()).placed == (waiting.id,)
    await cluster.check()
    running = await cluster.manager.sessions(OWNER, statuses=["RUNNING"], limit=2000, offset=0)
    assert running.total == 1001
    after = {agent.agent_id: set(agent.alive()) for agent in agents}
    assert all(after[agent_id] >= set(kernels) for agent_id, kernels in before.items())
    assert sum(len(kernels) for kernels in after.values()) == 1001
    assert not any("destroy" in agent.names_of_calls() for agent in agents)
    await cluster.kill()


async def test_what_happened_while_the_manager_was_away(tmp_path: Path) -> None:
    """1. One kernel runs, one is on its way, one is being ended. 2. The Manager dies. 3. Each of them moves on."""
    agent = FakeAgent("a1")
    cluster = await FakeCluster(agent, open_store=opener(tmp_path)).start()
    runs, starts, ends, queued = [
        await cluster.running("runs"),
        (await cluster.submit("starts")).session,
        await cluster.running("ends"),
        (await cluster.submit("queued", slots=ResourceSlots({CPU: 4000}))).session,
    ]
    await cluster.terminate(ends)
    await cluster.schedule()
    await cluster.kill()
    agent.end(runs.main.id, log_tail=b"last words")
    agent.start(starts.main.id)
    agent.end(ends.main.id)
    await cluster.restart()
    statuses = {name: (await cluster.manager.session(OWNER, name)).status for name in ("runs", "starts", "ends")}
    assert statuses == {"runs": Status.TERMINATED, "starts": Status.RUNNING, "ends": Status.TERMINATED}
    assert await cluster.manager.logs(OWNER, "runs", None) == b"last words"
    assert (await cluster.get(queued.id)).status is Status.PENDING
    assert agent.alive() == [starts.main.id]
    changes = await cluster.manager.history(SessionId(runs.id))
    assert [change.after for change in changes if change.kernel_id is None] == [
        Status.PENDING,
        Status.SCHEDULED,
        Status.RUNNING,
        Status.TERMINATING,
        Status.TERMINATED,
    ]
    assert (await cluster.manager.changes(GROUP, "", 0)).full
    await cluster.check()
    await cluster.kill()


_SUBMITS_FOR_EVER = textwrap.dedent(
    """
    import asyncio, os, sys
    from functools import partial
    from actors.testing import FakeAgent, FakeCluster
    from backendai_ray.store import Store

    async def main() -> None:
        agent = FakeAgent("a1", cores=64)
        agent.is_quick = True
        open_store = partial(Store.open, sys.argv[1])
        cluster = await FakeCluster(agent, open_store=open_store, first_id=os.getpid() << 20).start()
        number = 0
        while True:
            one = await cluster.submit(f"s{os.getpid()}-{number}", key=f"k{os.getpid()}-{number}")
            print(one.session.id, flush=True)  # from here on it is promised
            number += 1
            await cluster.schedule()
            if number > 60:
                await cluster.terminate(one.session)

    asyncio.run(main())
    """
)


@pytest.mark.kill
async def test_killed_at_any_moment_nothing_promised_is_lost(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    promised: list[str] = []
    for _ in range(2):
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", _SUBMITS_FOR_EVER, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            lines = (line.strip() for line in process.stdout)
            batch = [line for _, line in zip(range(20), (one for one in lines if len(one) == 36), strict=False)]
            os.kill(process.pid, signal.SIGKILL)
            promised += batch
    assert len(set(promised)) == 40
    cluster = await FakeCluster(FakeAgent("a1", cores=64), open_store=partial(Store.open, url)).start()
    for session_id in promised:
        session = await cluster.get(SessionId(session_id))
        assert session.id == session_id
    await cluster.check()
    await cluster.kill()


async def test_a_store_that_another_took_over_is_left_alone(tmp_path: Path) -> None:
    """A second Manager on the same store waits for the first one to leave."""
    first = await FakeCluster(FakeAgent("a1"), open_store=opener(tmp_path)).start()
    second = FakeCluster(FakeAgent("a1"), open_store=opener(tmp_path))
    starting = asyncio.create_task(second.start())
    assert (await first.submit("work")).created
    await first.kill()
    await asyncio.wait_for(starting, 15)

    async def found() -> bool:
        return (await second.manager.session(OWNER, "work")).status is Status.PENDING

    await wait_until_async(found)
    await second.kill()

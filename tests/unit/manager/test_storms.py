"""Random days in a small cluster: whatever fails and in which order, nothing is lost, doubled or leaked."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from actors.testing import GROUP, OWNER, FakeAgent, FakeCluster
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import Plan, Preemption
from backendai_ray.core.sessions import TERMINAL, ClusterMode, Reason, SessionType, Status

MOVES = 120


class Storm:
    """Does random things to a cluster, and checks it after each."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.agents = [FakeAgent("a1"), FakeAgent("a2", cores=2)]
        self.cluster = FakeCluster(*self.agents)
        self.submitted: list[SessionId] = []
        self.told: list[tuple[FakeAgent, object]] = []

    async def run(self) -> None:
        await self.cluster.start()
        moves = [
            self.submit,
            self.submit_gang,
            self.schedule,
            self.schedule,
            self.kernels_move,
            self.kernels_move,
            self.kernels_move,
            self.repeat_old_news,
            self.terminate,
            self.preempt,
            self.preempt,
            self.restart_session,
            self.store_goes_or_comes,
            self.agent_goes_or_comes,
            self.agent_reincarnates,
            self.orders_get_lost,
            self.manager_dies,
            self.time_passes,
        ]
        for _ in range(MOVES):
            try:
                await self.dice.choice(moves)()
            except BackendError:
                pass  # the store or a node is away: whoever asked is told so
            await self.cluster.settle()
            await self.cluster.check()
        await self.calm_down()

    async def submit(self) -> None:
        kind = self.dice.choice([SessionType.INTERACTIVE, SessionType.BATCH])
        priority = self.dice.choice([10, 10, 50])
        submitted = await self.cluster.submit(type=kind, startup_command="true", priority=priority)
        self.submitted.append(submitted.session.id)

    async def submit_gang(self) -> None:
        submitted = await self.cluster.submit(cluster_size=2, cluster_mode=ClusterMode.MULTI_NODE)
        self.submitted.append(submitted.session.id)

    async def schedule(self) -> None:
        await self.cluster.schedule()

    async def kernels_move(self) -> None:
        agent = self.dice.choice(self.agents)
        if agent.is_down or not agent.kernels:
            return
        fact = agent.kernels[self.dice.choice(sorted(agent.kernels))]
        match fact.status:
            case Status.PREPARING | Status.CREATING:
                if self.dice.random() < 0.2:
                    fact = agent.end(fact.kernel_id, Reason.START_FAILED, retryable=self.dice.random() < 0.5)
                else:
                    fact = agent.start(fact.kernel_id)
            case Status.RUNNING if self.dice.random() < 0.5:
                fact = agent.finish_startup(fact.kernel_id, self.dice.randrange(2))
            case Status.RUNNING | Status.TERMINATING:
                fact = agent.end(fact.kernel_id, log_tail=b"log")
            case _:
                pass
        self.told.append((agent, fact))
        if self.dice.random() < 0.8:  # else the news is lost on its way
            await self.cluster.tell(agent, [fact])

    async def repeat_old_news(self) -> None:
        if not self.told:
            return
        agent, fact = self.dice.choice(self.told)
        current = agent.kernels.get(fact.kernel_id)  # type: ignore[attr-defined]
        if current is not None and current.attempt == fact.attempt:  # type: ignore[attr-defined]
            await self.cluster.tell(agent, [current, current])

    async def terminate(self) -> None:
        if self.submitted:
            session = await self.cluster.get(self.dice.choice(self.submitted))
            await self.cluster.terminate(session, forced=self.dice.random() < 0.3)

    async def preempt(self) -> None:
        """End a random session for another random one; the Manager says no to what may not be."""
        if len(self.submitted) > 1:
            victim, other = self.dice.sample(self.submitted, 2)
            line = Preemption(victim, other, "for another", self.dice.random() < 0.7, self.dice.choice([None, 5.0]))
            await self.cluster.manager.apply(GROUP, Plan(preemptions=(line,)), pass_id="preempt")

    async def restart_session(self) -> None:
        if any(agent.is_down for agent in self.agents) or not self.submitted:
            return
        await self.cluster.manager.restart(OWNER, self.dice.choice(self.submitted), request_id="")

    async def store_goes_or_comes(self) -> None:
        self.cluster.store.is_away = not self.cluster.store.is_away and self.dice.random() < 0.5

    async def agent_goes_or_comes(self) -> None:
        agent = self.dice.choice(self.agents)
        agent.is_down = not agent.is_down and self.dice.random() < 0.5

    async def agent_reincarnates(self) -> None:
        agent = self.dice.choice(self.agents)
        agent.reincarnate()
        await self.cluster.introduce(agent)

    async def orders_get_lost(self) -> None:
        self.dice.choice(self.agents).loses_orders = self.dice.randrange(3)

    async def manager_dies(self) -> None:
        if not self.cluster.store.is_away:
            await self.cluster.restart()

    async def time_passes(self) -> None:
        await self.cluster.pass_time(self.dice.choice([3, 15, 70]), step_s=3)

    async def calm_down(self) -> None:
        """Everything works again: what was submitted must come to its end, and nothing may be left."""
        self.cluster.store.is_away = False
        for agent in self.agents:
            agent.is_down, agent.is_quick, agent.loses_orders = False, True, 0
        for session_id in self.submitted:
            await self.cluster.terminate(await self.cluster.get(session_id))
        for agent in self.agents:
            agent.kernels.update(
                {k: replace(f, status=Status.RUNNING) for k, f in agent.kernels.items() if f.status is Status.CREATING}
            )
        await self.cluster.pass_time(140, step_s=2)
        await self.cluster.check()
        for session_id in self.submitted:
            session = await self.cluster.get(session_id)
            assert session.is_terminal, (session.status, session.message)
            assert {kernel.status for kernel in session.kernels} <= TERMINAL
        views = await self.cluster.manager.agents()
        assert all(view.schedulable and not view.occupied for view in views), views
        assert all(not agent.alive() for agent in self.agents)
        assert all(not agent.kernels for agent in self.agents), "ended kernels were not acknowledged"


@pytest.mark.parametrize("seed", range(12))
async def test_a_storm_passes(seed: int) -> None:
    storm = Storm(seed)
    await storm.run()
    assert storm.submitted
    await storm.cluster.kill()

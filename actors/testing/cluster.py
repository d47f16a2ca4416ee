"""A Manager among fakes: a whole cluster in one process, without Ray, engine or clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from actors.contracts import SubmitRequest, Submitted
from actors.manager import Manager
from actors.manager.ports import ManagerStore, OpenStore
from backendai_ray.config import Settings
from backendai_ray.core.errors import AgentUnavailable, BackendError
from backendai_ray.core.ids import AccessKey, AgentId, ResourceGroupName, SessionId
from backendai_ray.core.reports import KernelFact, NodeReport
from backendai_ray.core.scheduling import Applied, Plan
from backendai_ray.core.sessions import Session, SessionSpec
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

from .agents import GIB, FakeAgent
from .clock import ManualClock
from .scheduler import FakeSokovan, first_come_plan
from .store import MemoryStore

OWNER = AccessKey("AKIAOWNER")
GROUP = ResourceGroupName("default")


class FakeCluster:
    """Everything around a Manager, and the Manager; ``restart`` kills it and starts another one on what is left."""

    def __init__(
        self,
        *agents: FakeAgent,
        settings: Settings | None = None,
        store: MemoryStore | None = None,
        open_store: OpenStore | None = None,
        first_id: int = 1,
    ) -> None:
        """Put it together; clusters that share a store in turn need ids of their own (``first_id``)."""
        self.clock = ManualClock()
        self.store = store or MemoryStore()
        self.sokovan = FakeSokovan()
        self.agents = {agent.agent_id: agent for agent in agents}
        self.settings = settings or Settings()
        self._open_store = open_store or self._memory_store
        self._ids = count(first_id)
        for agent in agents:
            agent.tell = partial(self.tell, agent)
        self.manager = self._new_manager()

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> FakeCluster:
        """Start the Manager and introduce the agents that are there."""
        await self.manager.start()
        await self.settle()
        for agent in self.agents.values():
            if not agent.is_down:
                await self.introduce(agent)
        await self.settle()
        return self

    async def restart(self) -> None:
        """Kill the Manager without a word and start another one."""
        await self.kill()
        self.manager = self._new_manager()
        await self.start()

    async def kill(self) -> None:
        """End the Manager as ``kill -9`` would: nothing of its memory stays."""
        await self.manager.stop()

    async def introduce(self, agent: FakeAgent, *, ready: bool = True) -> None:
        """Let an agent report its node."""
        report = agent.report()
        await self.manager.node_report(agent.agent_id, agent.incarnation, agent.version, report, ready=ready)

    async def heartbeat(self) -> None:
        """Let every agent that is there say so, as a real one does."""
        for agent in self.agents.values():
            if agent.is_down:
                continue
            try:
                await self.manager.heartbeat(agent.agent_id, agent.incarnation)
            except BackendError:
                await self.introduce(agent)
        await self.settle()

    async def tell(self, agent: FakeAgent, facts: Sequence[KernelFact]) -> None:
        """Let an agent tell the Manager of its kernels."""
        await self.manager.kernel_facts(agent.agent_id, agent.incarnation, facts)

    async def settle(self) -> None:
        """Wait until nothing that the Manager began is under way (orders to dead agents aside)."""
        parts = self.manager._parts
        if parts is None:
            return
        for _ in range(50):
            waits: list[Callable[[], Awaitable[None]]] = [parts.reconciler.settle, parts.waker.settle]
            if not any(agent.is_down or agent.delay_s for agent in self.agents.values()):
                waits.append(parts.orders.settle)
            for wait in waits:
                await wait()
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let time pass, with heartbeats, deadlines and sweeps in it."""
        passed = 0.0
        while passed < seconds:
            self.clock.advance(step_s)
            passed += step_s
            await self.heartbeat()
            await self.manager.tick()
            await self.settle()

    # ── what people and Sokovan do ────────────────────────────────────────────────────────────────────────────────

    def spec(self, name: str = "", **changes: Any) -> SessionSpec:
        """Return what a session of one core asks for."""
        number = next(self._ids)
        defaults: dict[str, Any] = {
            "id": SessionId(f"00000000-0000-4000-9000-{number:012x}"),
            "name": name or f"s{number}",
            "access_key": OWNER,
            "image": "python",
            "slots": ResourceSlots([(CPU, 1000), (MEM, GIB)]),
        }
        return SessionSpec(**{**defaults, **changes})

    async def submit(self, name: str = "", *, key: str = "", reuse: bool = False, **spec: Any) -> Submitted:
        """Submit a session."""
        request = SubmitRequest(
            spec=self.spec(name, **spec), reuse_if_exists=reuse, idempotency_key=key, request_id="request"
        )
        return await self.manager.submit(request)

    async def plan(self) -> Plan:
        """Return what a first-come-first-served policy makes of the present."""
        return first_come_plan(await self.manager.changes(GROUP, "", 0))

    async def schedule(self) -> Applied:
        """Run one pass."""
        applied = await self.manager.apply(GROUP, await self.plan(), pass_id="pass")
        await self.settle()
        return applied

    async def running(self, name: str = "", **spec: Any) -> Session:
        """Return a session that was submitted, placed and started."""
        session = (await self.submit(name, **spec)).session
        await self.schedule()
        for kernel in (await self.get(session.id)).kernels:
            agent = self.agents[kernel.agent_id or AgentId("")]
            if not agent.is_quick:
                await self.tell(agent, [agent.start(kernel.id)])
        await self.settle()
        return await self.get(session.id)

    async def get(self, session_id: SessionId) -> Session:
        """Return a session's newest record."""
        return await self.manager.session(OWNER, session_id)

    async def terminate(self, session: Session, *, forced: bool = False, recursive: bool = False) -> Session:
        """End a session, as its owner."""
        return await self.manager.terminate(OWNER, session.id, forced=forced, recursive=recursive, request_id="request")

    async def check(self) -> None:
        """Fail when an invariant of the Manager's memory does not hold."""
        broken = await self.manager.validate()
        assert not broken, broken

    # ── wiring ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_manager(self) -> Manager:
        return Manager(
            self.settings,
            connect_agent=self._connect,
            sokovan=self.sokovan,
            resolve_report=self._resolve,
            open_store=self._open_store,
            open_relay=lambda _: None,
            clock=self.clock,
            new_id=lambda: f"00000000-0000-4000-8000-{next(self._ids):012x}",
            minds_itself=False,
        )

    def _connect(self, agent_id: AgentId) -> FakeAgent:
        agent = self.agents.get(agent_id)
        if agent is None:
            raise AgentUnavailable(f"there is no agent {agent_id}")
        return agent

    async def _memory_store(self) -> ManagerStore:
        return self.store

    @staticmethod
    async def _resolve(report: object) -> NodeReport:
        assert isinstance(report, NodeReport)
        return report

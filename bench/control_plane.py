"""The control plane in this process: Manager, Sokovan, policy hosts and a durable store, among pretending agents.

Everything but the nodes is what a cluster runs, down to the commit on disk; calls between the parts are calls within
one process and one thread, so one core does what a cluster spreads over several processes, and nothing is pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.agent.facts import FactQueue
from actors.contracts import AgentContract
from actors.manager import Manager
from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from actors.testing.agents import FakeAgent
from backendai_ray.config import Settings
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Device
from backendai_ray.core.errors import AgentUnavailable
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.sessions import TERMINAL, KernelSpec, Reason, SessionSpec
from backendai_ray.logs import configure_logging
from backendai_ray.store import Store

OWNER = AccessKey("AKIABENCH")

RunsFor = Callable[[KernelSpec], float | None]
"""How long a kernel runs before it ends by itself, seconds; ``None``: until it is told to end."""


class PretendingAgent(FakeAgent):
    """Starts kernels at once and ends them when their time is up; its news go the way of a real agent's."""

    def __init__(
        self, agent_id: AgentId, devices: Sequence[Device], group: ResourceGroupName, runs_for: RunsFor
    ) -> None:
        super().__init__(agent_id, group=group)
        self.devices = tuple(devices)
        self._held = DeviceMap(devices)
        self._runs_for = runs_for
        self.news: FactQueue
        self.on_order: Callable[[KernelSpec], None] = lambda _: None
        """Is told of every kernel that is ordered."""

    async def create_kernels(self, specs: Sequence[KernelSpec]) -> None:
        """Take the order; what starts is told after this has returned."""
        for spec in specs:
            self.on_order(spec)
        await super().create_kernels(specs)
        loop = asyncio.get_running_loop()
        for spec in specs:
            self.news.put(self.start(spec.kernel_id))
            seconds = self._runs_for(spec)
            if seconds is not None:
                loop.call_later(seconds, self.let_go, spec.kernel_id)

    async def destroy_kernels(
        self, kernel_ids: Sequence[KernelId], reason: Reason, *, forced: bool = False, grace_s: float | None = None
    ) -> None:
        """End kernels at once."""
        for kernel_id in kernel_ids:
            self.let_go(kernel_id, reason)

    def let_go(self, kernel_id: KernelId, reason: Reason = Reason.SELF_TERMINATED) -> None:
        """A kernel ends, and the Manager is told."""
        fact = self.kernels.get(kernel_id)
        if fact is not None and fact.status not in TERMINAL:
            self.news.put(self.end(kernel_id, reason, exit_code=0))


class ControlPlane:
    """See the module. Make it with :func:`control_plane`."""

    def __init__(self, settings: Settings, agents: Mapping[AgentId, PretendingAgent]) -> None:
        self.agents = agents
        self.hosts: dict[ResourceGroupName, PolicyHost] = {}
        self.manager = Manager(
            settings,
            connect_agent=self._agent,
            sokovan=self,  # type: ignore[arg-type]
            resolve_report=_as_it_is,
            open_store=partial(Store.open, settings.store_url),
            open_relay=lambda _: None,
        )
        self.sokovan = Sokovan(settings, manager=self.manager, connect_host=self._host)
        self._is_scheduling = False
        self._numbers = iter(range(1, 2**40))

    async def start(self) -> None:
        """Start the Manager and introduce all nodes; nothing is scheduled yet."""
        await self.manager.start()
        for agent in self.agents.values():
            agent.news = FactQueue(agent.agent_id, agent.incarnation, self.manager)
            await self.manager.node_report(agent.agent_id, agent.incarnation, 1, agent.report(), ready=True)
        await until(self._all_schedulable)

    async def _all_schedulable(self) -> bool:
        return all(view.schedulable for view in await self.manager.agents())

    async def are_running(self, count: int) -> bool:
        """Return whether so many sessions run."""
        return (await self.manager.sessions(None, statuses=["RUNNING"], limit=1, offset=0)).total >= count

    async def schedule(self) -> None:
        """Let Sokovan begin."""
        self._is_scheduling = True
        await self.sokovan.start()

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        """Pass the Manager's wake on."""
        if self._is_scheduling:
            await self.sokovan.wake(group, why)

    def spec(self, **asked: Any) -> SessionSpec:
        """Return what a new session asks for."""
        number = next(self._numbers)
        defaults = {"name": f"bench-{number}", "access_key": OWNER, "image": "python"}
        return SessionSpec(id=SessionId(f"00000000-0000-4000-8000-{number:012x}"), **{**defaults, **asked})

    def _agent(self, agent_id: AgentId) -> AgentContract:
        try:
            return self.agents[agent_id]
        except KeyError:
            raise AgentUnavailable(f"there is no agent {agent_id}") from None

    async def _host(self, group: ResourceGroupName) -> PolicyHost:
        return self.hosts.setdefault(group, PolicyHost(group, resolve=_as_it_is))


@contextlib.asynccontextmanager
async def control_plane(
    agents: Sequence[PretendingAgent], *, policy: str = "fifo", selection: str = "concentrated"
) -> AsyncIterator[ControlPlane]:
    """Yield a control plane on a SQLite file in a temporary folder; it schedules once it is told to."""
    with tempfile.TemporaryDirectory(prefix="bai-bench-") as folder:
        settings = Settings.model_validate(
            {
                "data_dir": Path(folder),
                "scheduler": {"policy": policy, "selection": selection},
                # Nobody sends heartbeats here.
                "manager": {"heartbeat_timeout_s": 3600.0, "agent_lost_after_s": 7200.0},
            }
        )
        configure_logging(settings.data_dir / "logs", "bench", "INFO")
        plane = ControlPlane(settings, {agent.agent_id: agent for agent in agents})
        await plane.start()
        tellers = [asyncio.create_task(agent.news.run()) for agent in agents]
        try:
            yield plane
        finally:
            for teller in tellers:
                teller.cancel()
            await asyncio.gather(*tellers, return_exceptions=True)
            await plane.sokovan.stop()
            await plane.manager.stop()


async def until(holds: Callable[[], Awaitable[bool]], *, limit_s: float = 120.0, every_s: float = 0.02) -> None:
    """Wait until something holds, looking again and again."""
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110 - the Manager is asked as a client would
            await asyncio.sleep(every_s)


async def _as_it_is(report: object) -> NodeReport:
    assert isinstance(report, NodeReport)
    return report

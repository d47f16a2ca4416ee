"""One agent in this process with one kernel: what an execute costs on the agent, without HTTP and without Ray."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from actors.agent.agent import Agent
from actors.agent.testing.builders import kernel_spec_of
from actors.contracts import ExecuteRequest, Route
from backendai_ray.config import load_settings
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation
from backendai_ray.core.execution import ExecMode, RunStatus
from backendai_ray.core.ids import AgentId
from backendai_ray.core.reports import KernelFact, NodeReport
from backendai_ray.core.sessions import Reason, Status
from backendai_ray.core.slots import ResourceSlots

_LIMIT_S = 60.0


class _Listener:
    """The Manager's part: takes everything, and knows what was told."""

    def __init__(self) -> None:
        self.report: asyncio.Future[NodeReport] = asyncio.get_running_loop().create_future()
        self.statuses: dict[Status, asyncio.Event] = {status: asyncio.Event() for status in Status}

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None:
        for fact in facts:
            self.statuses[fact.status].set()

    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None:
        if ready and not self.report.done() and isinstance(report, NodeReport):
            self.report.set_result(report)

    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None:
        pass


class AgentKernel:
    """As a context manager: a running agent and kernel; :meth:`run` executes and waits for the end."""

    def __enter__(self) -> AgentKernel:
        self._folder = Path(tempfile.mkdtemp(prefix="bai-bench-"))
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()
        self._loop.run_until_complete(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._stop())
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, code: str) -> str:
        """Execute and return what was printed."""
        return self._loop.run_until_complete(self._run(code))

    async def _start(self) -> None:
        settings = load_settings(data_dir=self._folder, agent={"backend": "process", "reserved_mem": "0"})
        self._listener = _Listener()
        self._agent = Agent(AgentId("bench"), settings, self._listener)
        await self._agent.start()
        report = await asyncio.wait_for(self._listener.report, _LIMIT_S)
        slots = ResourceSlots.parse({"cpu": 1, "mem": "512m"})
        allocation = DeviceMap(report.devices.devices()).allocate(slots)
        if not isinstance(allocation, Allocation):
            raise RuntimeError(f"no room for one kernel: {allocation}")
        spec = kernel_spec_of(allocation)
        await self._agent.create_kernels([spec])
        await asyncio.wait_for(self._listener.statuses[Status.RUNNING].wait(), _LIMIT_S)
        self._route = Route(
            session_id=spec.session_id, kernel_id=spec.kernel_id, agent_id=AgentId("bench"), epoch=spec.epoch
        )

    async def _stop(self) -> None:
        await self._agent.destroy_kernels([self._route.kernel_id], Reason.USER_REQUESTED, forced=True)
        await asyncio.wait_for(self._listener.statuses[Status.TERMINATED].wait(), _LIMIT_S)
        await self._agent.close()

    async def _run(self, code: str) -> str:
        run_id = f"bench-{next(self._numbers)}"
        mode, text = ExecMode.QUERY, ""
        while True:
            answer = await self._agent.execute(
                ExecuteRequest(route=self._route, run_id=run_id, mode=mode, code=code if mode is ExecMode.QUERY else "")
            )
            text += "".join(str(data) for kind, data in answer.console if kind == "stdout")
            if answer.status is RunStatus.FINISHED:
                return text
            mode = ExecMode.CONTINUE

"""An agent on a fake engine, with a Manager that records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.agent import node
from actors.agent.agent import Agent
from actors.agent.journal import KernelRecord
from actors.agent.testing.builders import kernel_spec_of
from actors.agent.testing.fakes import FakeBackend, FakeEngine, FakeLink, FakePlugin, RecordingManager
from actors.agent.workshop import Workshop
from actors.contracts import Route
from backendai_ray.config import Settings, load_settings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AgentId, DeviceId
from backendai_ray.core.sessions import KernelSpec
from backendai_ray.core.slots import CPU, MEM

AGENT = AgentId("node-1")
MIB = 2**20


def kernel_spec(core: int = 0, *, units: int = 1000, **changes: Any) -> KernelSpec:
    """A kernel on one core."""
    allocation = Allocation.of([(CPU, DeviceId(str(core)), units), (MEM, DeviceId("root"), 512 * MIB)])
    return kernel_spec_of(allocation, **changes)


def route_to(spec: KernelSpec, *, epoch: int = 0) -> Route:
    return Route(session_id=spec.session_id, kernel_id=spec.kernel_id, agent_id=AGENT, epoch=epoch)


class Bench:
    """One node over several incarnations of its agent: engine, disk and Manager stay, agents come and go."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = FakeEngine()
        self.manager = RecordingManager()
        self.backend = FakeBackend(settings, AGENT, self.engine)
        self.links: list[FakeLink] = []
        self.connect_errors: list[Exception] = []
        self.agents: list[Agent] = []

    async def agent(self) -> Agent:
        """Start an agent; an earlier one is gone without a word, as after a SIGKILL."""
        for earlier in self.agents:
            await earlier.close()
        self.agents = [Agent(AGENT, self.settings, self.manager, backend=self.backend, plugins=[FakePlugin()],
                             connect=self._connect)]  # fmt: skip
        await self.agents[0].start()
        return self.agents[0]

    def _connect(self, _workshop: Workshop, record: KernelRecord, _socket: Path) -> FakeLink:
        link = FakeLink(self.engine, record.life)
        if self.connect_errors:
            link.connect_error = self.connect_errors.pop(0)
        self.links.append(link)
        return link

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.settings.sessions_dir.iterdir())


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(node, "LOOK_INTERVAL_S", 0.02)
    settings = load_settings(data_dir=tmp_path, agent={"heartbeat_interval_s": 0.02, "stop_grace_s": 0})
    bench = Bench(settings)
    yield bench
    for agent in bench.agents:
        await agent.close()


Running = Callable[..., Awaitable[Sequence[KernelSpec]]]


@pytest.fixture
async def agent(bench: Bench) -> Agent:
    return await bench.agent()

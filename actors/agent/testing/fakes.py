"""Stand-ins for what an agent talks to: a Manager that records, and backends that behave and misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

from actors.agent.backends.base import (
    BackendInfo,
    ComputeBackend,
    Ending,
    Found,
    Launch,
    Life,
    PreparedImage,
    Tell,
    nobody,
)
from actors.agent.devices.base import DevicePlugin, Grant
from actors.agent.runner_link import PtyOutput, RunnerInfo, RunnerStatus
from backendai_ray.config import Settings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import (
    EngineUnavailable,
    ImageNotFound,
    KernelStartFailed,
    KernelUnreachable,
    RunNotFound,
)
from backendai_ray.core.execution import ConsoleRecord, ExecMode, RunOutput, RunStatus
from backendai_ray.core.ids import AgentId, DeviceId, KernelId, SessionId
from backendai_ray.core.reports import KernelFact, NodeReport
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM, SlotName


class RecordingManager:
    """Takes everything, remembers it in order, and can be told to be away."""

    def __init__(self) -> None:
        self.facts: list[KernelFact] = []
        self.reports: list[tuple[int, NodeReport, bool]] = []
        self.heartbeats = 0
        self.error: Exception | None = None
        """Raised by every call while set."""
        self.refused = 0
        self._news = asyncio.Event()

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None:
        self._fail()
        self.facts += facts
        self._news.set()

    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None:
        self._fail()
        assert isinstance(report, NodeReport)
        self.reports.append((version, report, ready))
        self._news.set()

    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None:
        self._fail()
        self.heartbeats += 1
        self._news.set()

    def _fail(self) -> None:
        if self.error is not None:
            self.refused += 1
            self._news.set()
            raise self.error

    def statuses(self, kernel_id: KernelId) -> list[Status]:
        """Return all that was said of a kernel, in order."""
        return [fact.status for fact in self.facts if fact.kernel_id == kernel_id]

    def last(self, kernel_id: KernelId) -> KernelFact | None:
        """Return the newest fact about a kernel."""
        return next((fact for fact in reversed(self.facts) if fact.kernel_id == kernel_id), None)

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
        """Wait until something that was told makes a condition true.

        Raises:
            AssertionError: it never did; the message tells all facts.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            self._news.clear()
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, left))
            except TimeoutError:
                told = [(f.kernel_id[:8], f.status.value, f.reason, f.message) for f in self.facts]
                raise AssertionError(f"not told within {timeout_s:g} s; told so far: {told}") from None

    async def until_status(self, kernel_id: KernelId, *wanted: Status, timeout_s: float = 10.0) -> KernelFact:
        """Wait until the newest fact about a kernel has one of the statuses, and return it."""
        await self.until(lambda: (last := self.last(kernel_id)) and last.status in wanted, timeout_s=timeout_s)
        fact = self.last(kernel_id)
        assert fact is not None
        return fact


class FakePlugin(DevicePlugin):
    """A node with as many cores and as much memory as a test wants."""

    name = "fake"

    def __init__(self, cores: int = 8, memory_bytes: int = 2**34) -> None:
        self._cores = cores
        self._memory = memory_bytes

    @property
    def slots(self) -> Sequence[SlotName]:
        return (CPU, MEM)

    def devices(self) -> Sequence[Device]:
        cores = [Device(slot=CPU, id=DeviceId(str(core)), capacity=1000) for core in range(self._cores)]
        return [*cores, Device(slot=MEM, id=DeviceId("root"), capacity=self._memory)]

    def grant(self, allocation: Allocation) -> Grant:
        return Grant(memory_bytes=sum(allocation.devices(MEM).values()))


class FakeEngine:
    """What a fake backend's lives live in; it survives the agent, as a real engine does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lives: dict[Life, Found] = {}
        self.endings: dict[Life, Ending] = {}
        self.made: list[Life] = []
        self.removed: list[Life] = []
        self.watchers: list[Callable[[Life], None]] = []

    def end(self, life: Life, *, exit_code: int = 0, oom_killed: bool = False, tell: bool = True) -> None:
        """Let a life end by itself; without ``tell`` nobody notices until it is looked for."""
        with self.lock:
            found = self.lives[life]
            self.lives[life] = Found(life=life, container_id=found.container_id, is_running=False)
            self.endings[life] = Ending(exit_code=exit_code, oom_killed=oom_killed, log=b"what it printed")
        for watcher in self.watchers if tell else ():
            watcher(life)

    def running(self) -> list[Life]:
        return [life for life, found in self.lives.items() if found.is_running]


class FakeBackend(ComputeBackend):
    """Works at once; a test makes it misbehave through its attributes."""

    name = "fake"

    def __init__(self, settings: Settings, agent_id: AgentId, engine: FakeEngine | None = None) -> None:
        super().__init__(settings, agent_id)
        self.engine = engine or FakeEngine()
        self.gate = threading.Event()
        """Launches wait for it."""
        self.gate.set()
        self.pull_gate = threading.Event()
        self.pull_gate.set()
        self.launch_errors: list[Exception] = []
        """Raised by the next launches, first things first."""
        self.stop_errors: list[Exception] = []
        self.graces: list[float] = []
        """What each stop was given."""
        self.sick = ""
        self.most_at_once = 0
        self._at_once = 0

    def open(self) -> None: ...
    def close(self) -> None: ...

    def probe(self) -> BackendInfo:
        return BackendInfo(architecture="x86_64", labels={"isolation": "full"})

    def health(self) -> str:
        return self.sick

    def images(self) -> Sequence[str]:
        return ["python"]

    def is_prepared(self, reference: str) -> bool:
        return self.pull_gate.is_set()

    def prepare_image(self, reference: str, architecture: str, tell: Tell = nobody) -> PreparedImage:
        assert self.pull_gate.wait(10)
        if reference != "python":
            raise ImageNotFound(f"there is no image {reference!r}")
        return PreparedImage(reference=reference, id="1", python="/usr/bin/python3")

    def launch(self, launch: Launch) -> str:
        with self.engine.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            assert self.gate.wait(10)
            if self.launch_errors:
                raise self.launch_errors.pop(0)
            with self.engine.lock:
                if launch.life not in self.engine.lives:
                    found = Found(life=launch.life, container_id=f"c-{launch.life}", is_running=True)
                    self.engine.lives[launch.life] = found
                    self.engine.made.append(launch.life)
                return self.engine.lives[launch.life].container_id
        finally:
            with self.engine.lock:
                self._at_once -= 1

    def list_own(self) -> Sequence[Found]:
        return list(self.engine.lives.values())

    def watch(self, on_end: Callable[[Life], None]) -> None:
        self.engine.watchers = [on_end]

    def is_running(self, life: Life) -> bool:
        found = self.engine.lives.get(life)
        return found is not None and found.is_running

    def oom_kills(self, life: Life) -> int:
        return 0

    def log(self, life: Life, max_bytes: int) -> bytes:
        return b"what it printed"

    def stats(self, life: Life) -> Mapping[str, int]:
        return {}

    def stop(self, life: Life, grace_s: float) -> Ending:
        if self.stop_errors:
            raise self.stop_errors.pop(0)
        self.graces.append(grace_s)
        if life not in self.engine.lives:
            return Ending()
        if self.engine.lives[life].is_running:
            self.engine.end(life, exit_code=143, tell=False)
        return self.engine.endings[life]

    def remove(self, life: Life, gang: SessionId | None = None) -> None:
        if self.engine.lives.pop(life, None) is not None:
            self.engine.removed.append(life)


class FakeLink:
    """Answers like a runner that prints what it is given; tied to a life of a :class:`FakeEngine`."""

    def __init__(self, engine: FakeEngine, life: Life) -> None:
        self._engine = engine
        self._life = life
        self._closed = False
        self.connect_error: Exception | None = None
        self.runs: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        found = self._engine.lives.get(self._life)
        return not self._closed and found is not None and found.is_running

    async def connect(self, timeout_s: float) -> RunnerInfo:
        if self.connect_error is not None:
            raise self.connect_error
        return RunnerInfo(1, 1, "3.11", "cpython", "python", 0.0, RunnerStatus(None, (), ()))

    async def adopt(self, environ: Mapping[str, str]) -> None:
        raise AssertionError("no runner here is ever a spare")

    def close(self) -> None:
        self._closed = True

    async def run(
        self,
        run_id: str,
        mode: ExecMode,
        code: str,
        options: Mapping[str, object] | None = None,
        *,
        wait_s: float = 2.0,
        max_bytes: int = 2**20,
    ) -> RunOutput:
        self._must_live()
        self.runs.setdefault(run_id, code)
        return await self.poll(run_id)

    async def poll(self, run_id: str, *, after_seq: int = 0, wait_s: float = 2.0, max_bytes: int = 2**20) -> RunOutput:
        self._must_live()
        if run_id not in self.runs:
            raise RunNotFound(f"no run {run_id!r}")
        console: tuple[ConsoleRecord, ...] = (("stdout", self.runs[run_id]),) if after_seq < 1 else ()
        return RunOutput(run_id=run_id, status=RunStatus.FINISHED, console=console, seq=1, exit_code=0)

    async def run_startup(self, command: str, timeout_s: float | None = None) -> None:
        self._must_live()
        self.runs.setdefault("startup", command)

    async def send_input(self, run_id: str, text: str) -> None:
        self.runs[run_id] += text

    async def interrupt(self, run_id: str | None = None) -> bool:
        return False

    async def complete(self, code: str, cursor: int | None = None) -> tuple[str, ...]:
        return (code[:cursor],)

    async def status(self, timeout_s: float = 10.0) -> RunnerStatus:
        return RunnerStatus(None, (), ())

    async def shutdown(self, grace_s: float | None = None) -> None: ...
    async def open_pty(self, pty_id: str, *, rows: int = 24, cols: int = 80, command: str = "") -> None: ...
    async def pty_write(self, pty_id: str, data: bytes) -> None: ...
    async def pty_resize(self, pty_id: str, *, rows: int, cols: int) -> None: ...
    async def pty_close(self, pty_id: str) -> None: ...

    async def pty_read(self, pty_id: str, *, after: int = 0, wait_s: float = 2.0, max_bytes: int = 2**16) -> PtyOutput:
        return PtyOutput(b"", after)

    def _must_live(self) -> None:
        if not self.alive:
            raise KernelUnreachable("the kernel's runner has ended")


ENGINE_AWAY = EngineUnavailable("the engine is away")
CANNOT_START = KernelStartFailed("it cannot be started", retryable=True)

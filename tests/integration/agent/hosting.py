"""The test's side of an agent in a process of its own: call it, kill it, start it again, and hear what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import struct
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.agent.testing.builders import kernel_spec_of
from actors.contracts import ExecuteRequest, Route
from backendai_ray.config import Settings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.execution import ExecMode, RunOutput, RunStatus
from backendai_ray.core.ids import AgentId, DeviceId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from backendai_ray.core.slots import CPU, MEM

ROOT = Path(__file__).parents[3]
MIB = 2**20


class HostedAgent:
    """One node: the agent's process may come and go, the node's disk and engine stay."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        self.environ = dict(environ or {})
        """What the process has in its environment beside ours."""
        self.id = AgentId(f"test-{uuid.uuid4().hex[:12]}")
        self.settings = settings
        self.facts: list[KernelFact] = []
        self.reports: list[tuple[str, int, bool]] = []
        self._news = asyncio.Event()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._is_started = False

    async def start(self, *, timeout_s: float = 60) -> None:
        """Start the process; returns when the agent has found again what was there."""
        self._is_started = False
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.agent.host", self.id, _plain(self.settings),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT, start_new_session=True,
            env={**os.environ, **self.environ},
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))
        await self.until(lambda: self._is_started, timeout_s=timeout_s)

    async def kill(self) -> None:
        """SIGKILL the process and all that is left in its process group, as Ray does."""
        assert self._process is not None
        assert self._reading is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._reading
        self._process = None

    async def stop(self) -> None:
        """Let the agent leave by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await asyncio.wait_for(self._process.wait(), 30)
            assert self._reading is not None
            await self._reading

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        future = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        data = pickle.dumps((self._number, method, args, kwargs))
        self._process.stdin.write(struct.pack(">I", len(data)) + data)
        return await asyncio.wait_for(future, 60)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                (size,) = struct.unpack(">I", await process.stdout.readexactly(4))
                kind, content = pickle.loads(await process.stdout.readexactly(size))
            except asyncio.IncompleteReadError:
                break
            if kind == "facts":
                self.facts += content
            elif kind == "report":
                self.reports.append(content)
            elif kind == "started":
                self._is_started = True
            elif kind == "answer":
                number, is_good, value = content
                future = self._waiting.pop(number)
                if not future.done():
                    future.set_result(value) if is_good else future.set_exception(value)
            self._news.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the agent's process has ended"))
        self._waiting.clear()

    # ── waiting ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def until(self, condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not condition():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, deadline - loop.time()))
            except TimeoutError:
                told = [(f.kernel_id[:8], f.status.value, f.reason, f.message) for f in self.facts]
                raise AssertionError(f"not told within {timeout_s:g} s; told so far: {told}") from None

    def last(self, spec: KernelSpec) -> KernelFact | None:
        return next((fact for fact in reversed(self.facts) if fact.kernel_id == spec.kernel_id), None)

    async def until_status(self, spec: KernelSpec, *wanted: Status, timeout_s: float = 30.0) -> KernelFact:
        await self.until(lambda: (f := self.last(spec)) and f.status in wanted, timeout_s=timeout_s)
        fact = self.last(spec)
        assert fact is not None
        return fact

    # ── what sessions do ───────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self, *specs: KernelSpec) -> None:
        await self.call("create_kernels", specs)
        for spec in specs:
            fact = await self.until_status(spec, Status.RUNNING, Status.TERMINATED)
            assert fact.status is Status.RUNNING, fact

    async def end(self, *specs: KernelSpec, forced: bool = False) -> None:
        await self.call("destroy_kernels", [s.kernel_id for s in specs], Reason.USER_REQUESTED, forced=forced)
        for spec in specs:
            await self.until_status(spec, Status.TERMINATED)
        await self.call("acknowledge", [s.kernel_id for s in specs])

    def request(self, spec: KernelSpec, code: str, *, run_id: str = "", **changes: Any) -> ExecuteRequest:
        route = Route(session_id=spec.session_id, kernel_id=spec.kernel_id, agent_id=self.id, epoch=spec.epoch)
        request = ExecuteRequest(route=route, run_id=run_id or uuid.uuid4().hex, mode=ExecMode.QUERY, code=code)
        return replace(request, **changes)

    async def run(self, spec: KernelSpec, code: str, **changes: Any) -> RunOutput:
        """Run code to its end and return all of its output."""
        request = self.request(spec, code, **changes)
        output: RunOutput = await self.call("execute", request)
        console = output.console
        while output.status is RunStatus.CONTINUED:
            output = await self.call("execute", replace(request, mode=ExecMode.CONTINUE, code=""))
            console += output.console
        return replace(output, console=console)

    async def say(self, spec: KernelSpec, code: str, **changes: Any) -> str:
        return text_of(await self.run(spec, code, **changes)).strip()


def text_of(output: RunOutput) -> str:
    return "".join(str(text) for _, text in output.console)


def kernel_spec(core: int = 0, *, units: int = 1000, memory_bytes: int = 256 * MIB, **changes: Any) -> KernelSpec:
    """A kernel on one core (of which the tests' nodes give out ten times as many as there are)."""
    allocation = Allocation.of([(CPU, DeviceId(str(core)), units), (MEM, DeviceId("root"), memory_bytes)])
    return kernel_spec_of(allocation, **{"shmem_bytes": 16 * MIB, **changes})


def _plain(settings: Settings) -> str:
    return settings.model_copy(update={"bus": type(settings.bus)()}).model_dump_json()

"""A machine that lives by itself: kernels start, work, fail and end on it, also while its agent is dead.

The agent keeps the contract as the real one does: orders are recorded on the machine's disk before they are taken, a
new agent process finds again what runs, and what the Manager was not told it is told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from actors.agent.facts import FactQueue
from actors.contracts import Inspection
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Device
from backendai_ray.core.errors import AgentNotFound, BackendError, Conflict, KernelNotFound
from backendai_ray.core.ids import AgentId, DeviceId, KernelId, ResourceGroupName
from backendai_ray.core.reports import DeviceTable, KernelFact, NodeReport
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from backendai_ray.core.slots import CPU, MEM, SlotName

from .agents import GIB
from .processes import Process
from .wire import Wire

HEARTBEAT_S = 2.0
_FOR_EVER_S = 1e6
GPU = SlotName("cuda.device")


@dataclass(slots=True)
class Habits:
    """What kernels do; parts of them, and seconds."""

    fail_to_start: float = 0.1
    fail_for_good: float = 0.03
    end_by_themselves: float = 0.15
    hang: float = 0.04
    """At some step of their start, or at their end until they are killed: only a deadline helps."""
    step_s: float = 0.5
    """Between two steps of a start."""
    work_s: float = 8.0
    """How long a batch command takes on average, or a kernel lives that ends by itself."""


@dataclass(slots=True)
class Record:
    """What the disk knows of one kernel, and whether its container runs."""

    spec: KernelSpec
    epoch: int
    status: Status = Status.PREPARING
    reason: str = ""
    message: str = ""
    retryable: bool = False
    stopping: Reason | None = None
    command: str | None = None
    exit_code: int | None = None
    runs: bool = False

    @property
    def has_ended(self) -> bool:
        return self.status is Status.TERMINATED

    def fact(self) -> KernelFact:
        """Return what the agent says of it."""
        spec = self.spec
        return KernelFact(
            kernel_id=spec.kernel_id,
            session_id=spec.session_id,
            status=self.status,
            reason=self.reason,
            message=self.message,
            container_id=f"{spec.kernel_id}-{spec.attempt}-{self.epoch}" if self.runs else "",
            allocation=spec.allocation,
            attempt=spec.attempt,
            retryable=self.retryable,
            startup_exit_code=self.exit_code,
        )


@dataclass(slots=True)
class Machine:
    """The node: its disk, its devices and its containers."""

    agent_id: AgentId
    dice: Random
    wire: Wire
    violated: Callable[[str], None]
    cores: int = 4
    gpus: int = 2
    habits: Habits = field(default_factory=Habits)
    disk: dict[KernelId, Record] = field(default_factory=dict)
    process: Process = field(init=False)
    """What runs on the machine beside the agent; killed when the power goes."""
    agent: SimAgent | None = None
    held: DeviceMap = field(init=False)
    incarnations: int = 0

    def __post_init__(self) -> None:
        self.process = Process(f"machine:{self.agent_id}")
        self.held = DeviceMap(self.devices)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return what it has."""
        cores = [Device(CPU, DeviceId(str(i)), 1000) for i in range(self.cores)]
        gpus = [Device(GPU, DeviceId(str(i)), 1000) for i in range(self.gpus)]
        return (*cores, Device(MEM, DeviceId("0"), self.cores * 4 * GIB), *gpus)

    def boot_agent(self) -> None:
        """Start a new agent process."""
        self.incarnations += 1
        process = Process(f"agent:{self.agent_id}")
        self.agent = SimAgent(self, process, f"{self.agent_id}-{self.incarnations}")
        self.wire.listen(process.name, process, self.agent)
        process.spawn(self.agent.run())

    def kill_agent(self) -> None:
        """End the agent process; containers run on."""
        if self.agent is not None:
            self.agent.process.kill()
            self.agent = None

    def power_off(self, *, keeps_disk: bool) -> None:
        """End everything at once."""
        self.kill_agent()
        self.process.kill()
        self.process = Process(f"machine:{self.agent_id}")
        for record in self.disk.values():
            record.runs = False
        if not keeps_disk:
            self.disk.clear()
        self.held = DeviceMap(self.devices)
        for kernel_id, record in self.disk.items():
            if not record.has_ended:
                self.held.hold(kernel_id, record.spec.allocation)

    # ── containers ────────────────────────────────────────────────────────────────────────────────────────────────

    def run_container(self, record: Record) -> None:
        """Let a kernel's container run from now on."""
        record.runs = True
        if self.dice.random() < self.habits.end_by_themselves:
            self.process.spawn(self._end_by_itself(record, record.epoch))

    async def _end_by_itself(self, record: Record, epoch: int) -> None:
        await asyncio.sleep(self.dice.expovariate(1 / self.habits.work_s))
        if record.runs and record.epoch == epoch:
            record.runs = False
            if self.agent is not None:
                self.agent.container_ended(record)

    def run_command(self, record: Record, command: str) -> None:
        """Run the startup command; its end is on the disk, whoever listens."""
        record.command = command
        self.process.spawn(self._finish_command(record, record.epoch))

    async def _finish_command(self, record: Record, epoch: int) -> None:
        await asyncio.sleep(self.dice.expovariate(1 / self.habits.work_s))
        if record.runs and record.epoch == epoch:
            record.exit_code = int(self.dice.random() < 0.2)
            if self.agent is not None:
                self.agent.tell(record)


class SimAgent:
    """The agent process of a machine; the part of :class:`actors.contracts.AgentContract` that the Manager uses."""

    def __init__(self, machine: Machine, process: Process, incarnation: str) -> None:
        self.process = process
        self.incarnation = incarnation
        self._machine = machine
        self._manager = machine.wire.peer(process, "manager")
        self._facts = FactQueue(machine.agent_id, incarnation, self._manager)
        self._works: dict[KernelId, asyncio.Task[None]] = {}
        self._successors: dict[KernelId, KernelSpec] = {}
        self._version = 1

    async def run(self) -> None:
        """Introduce the node, find again what is there, and say every now and then that the agent is there."""
        self.process.spawn(self._facts.run())
        await self._introduce(ready=False)
        await asyncio.sleep(self._machine.dice.uniform(0, 1))
        for record in list(self._machine.disk.values()):
            self._go_on(record)
        await self._introduce(ready=True)
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._manager.heartbeat(self._machine.agent_id, self.incarnation)
            except AgentNotFound:
                await self._introduce(ready=True)
            except BackendError:
                pass  # the next one may get there

    async def _introduce(self, *, ready: bool) -> None:
        report = NodeReport(
            agent_id=self._machine.agent_id,
            incarnation=self.incarnation,
            version=self._version,
            resource_group=ResourceGroupName("default"),
            architecture="x86_64",
            backend="sim",
            devices=DeviceTable.of(self._machine.devices),
        )
        while True:
            try:
                await self._manager.node_report(report.agent_id, self.incarnation, report.version, report, ready=ready)
                return
            except BackendError:
                await asyncio.sleep(1)

    def tell(self, record: Record) -> None:
        """Let the Manager know how a kernel stands."""
        if self._machine.disk.get(record.spec.kernel_id) is record:
            self._facts.put(record.fact())

    def container_ended(self, record: Record) -> None:
        """A container is gone that nobody ended."""
        if record.status is Status.RUNNING and record.stopping is None:
            self._end(record, Reason.SELF_TERMINATED)

    # ── a kernel's life ───────────────────────────────────────────────────────────────────────────────────────────

    def _go_on(self, record: Record) -> None:
        """Take up again what an earlier agent process left."""
        if record.has_ended:
            self.tell(record)
        elif record.stopping is not None:
            self._work(record, self._stop(record, record.stopping, forced=False))
        elif record.status is not Status.RUNNING:
            self._work(record, self._make(record))
        elif not record.runs:
            self._end(record, Reason.CONTAINER_LOST)
        else:
            self.tell(record)

    def _work(self, record: Record, work: Any) -> None:
        kernel_id = record.spec.kernel_id
        before = self._works.pop(kernel_id, None)
        if before is not None:
            before.cancel()
        self._works[kernel_id] = self.process.spawn(work)

    async def _make(self, record: Record) -> None:
        machine = self._machine
        for status in (Status.PREPARING, Status.PULLING, Status.CREATING):
            record.status = status
            self.tell(record)
            hangs = machine.dice.random() < machine.habits.hang / 3
            await asyncio.sleep(_FOR_EVER_S if hangs else machine.dice.expovariate(1 / machine.habits.step_s))
            chance = machine.dice.random()
            if chance < machine.habits.fail_to_start / 3:
                record.retryable = chance > machine.habits.fail_for_good / 3
                self._end(record, Reason.START_FAILED, "it would not start")
                return
        record.status = Status.RUNNING
        machine.run_container(record)
        self.tell(record)

    async def _stop(self, record: Record, reason: Reason, *, forced: bool) -> None:
        machine = self._machine
        hangs = not forced and machine.dice.random() < machine.habits.hang
        await asyncio.sleep(_FOR_EVER_S if hangs else machine.dice.uniform(0, 0.2 if forced else 2.0))
        self._end(record, reason)

    def _end(self, record: Record, reason: Reason, message: str = "") -> None:
        kernel_id = record.spec.kernel_id
        self._works.pop(kernel_id, None)
        record.status, record.reason, record.message, record.runs = Status.TERMINATED, reason.value, message, False
        self._machine.held.release(kernel_id)
        self.tell(record)
        successor = self._successors.pop(kernel_id, None)
        if successor is not None:
            self._begin(successor)

    # ── what the Manager asks ─────────────────────────────────────────────────────────────────────────────────────

    async def create_kernels(self, specs: Sequence[KernelSpec]) -> None:
        for spec in specs:
            known = self._machine.disk.get(spec.kernel_id)
            if known is not None and spec.attempt <= known.spec.attempt:
                continue
            if known is not None and not known.has_ended:
                self._successors[spec.kernel_id] = spec
                self._begin_to_stop(known, Reason.RETRY, forced=True)
                continue
            self._begin(spec)

    def _begin(self, spec: KernelSpec) -> None:
        try:
            self._machine.held.hold(spec.kernel_id, spec.allocation)
        except Conflict as exc:
            self._machine.violated(f"{self._machine.agent_id} was given devices twice: {exc.message}")
            return
        record = self._machine.disk[spec.kernel_id] = Record(spec, spec.epoch)
        self._work(record, self._make(record))

    async def destroy_kernels(
        self, kernel_ids: Sequence[KernelId], reason: Reason, *, forced: bool = False, grace_s: float | None = None
    ) -> None:
        for kernel_id in kernel_ids:
            self._successors.pop(kernel_id, None)
            record = self._machine.disk.get(kernel_id)
            if record is None:
                gone = KernelFact(
                    kernel_id=kernel_id, session_id="", status=Status.TERMINATED, reason=reason.value, attempt=0
                )
                self._facts.put(gone)
            elif record.has_ended:
                self.tell(record)
            else:
                self._begin_to_stop(record, reason, forced=forced)

    def _begin_to_stop(self, record: Record, reason: Reason, *, forced: bool) -> None:
        if record.stopping is None or forced:
            record.stopping = record.stopping or reason
            record.status = Status.TERMINATING
            self._work(record, self._stop(record, record.stopping, forced=forced))

    async def restart_kernels(self, kernel_ids: Sequence[KernelId], epoch: int) -> None:
        for kernel_id in kernel_ids:
            record = self._known(kernel_id)
            if record.epoch >= epoch or record.has_ended or record.stopping is not None:
                continue
            record.epoch, record.runs, record.command, record.exit_code = epoch, False, None, None
            self._work(record, self._make(record))

    async def run_startup(self, kernel_id: KernelId, command: str, timeout_s: float | None) -> None:
        record = self._known(kernel_id)
        if record.exit_code is not None:
            self.tell(record)
        elif record.command is None and record.runs:
            self._machine.run_command(record, command)

    async def update_route(self, kernel_id: KernelId, name: str, epoch: int) -> None:
        self._known(kernel_id)

    async def inspect(self) -> Inspection:
        kernels = tuple(record.fact() for record in self._machine.disk.values())
        return Inspection(agent_id=self._machine.agent_id, incarnation=self.incarnation, kernels=kernels)

    async def acknowledge(self, kernel_ids: Sequence[KernelId]) -> None:
        for kernel_id in kernel_ids:
            record = self._machine.disk.get(kernel_id)
            if record is not None and record.has_ended:
                del self._machine.disk[kernel_id]

    def _known(self, kernel_id: KernelId) -> Record:
        record = self._machine.disk.get(kernel_id)
        if record is None:
            raise KernelNotFound(kernel_id=kernel_id)
        return record

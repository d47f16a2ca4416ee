"""An agent without a node: it keeps the contract, records its orders, and can be slow, dead or forgetful."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.contracts import AgentContract, ExecuteRequest, FileEntry, Inspection, Route, Transfer
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import AgentUnavailable, KernelNotFound, UnsupportedByImage
from backendai_ray.core.execution import RunOutput
from backendai_ray.core.ids import AgentId, DeviceId, KernelId, ResourceGroupName
from backendai_ray.core.reports import DeviceTable, KernelFact, NodeReport
from backendai_ray.core.runtimes import BUILT_IN, Runtime
from backendai_ray.core.sessions import TERMINAL, KernelSpec, Reason, Status
from backendai_ray.core.slots import CPU, MEM

GIB = 2**30

Tell = Callable[[Sequence[KernelFact]], Awaitable[None]]


class FakeAgent(AgentContract):
    """Kernels are facts in a dict; they move when told to, or by themselves with ``is_quick``.

    A device that two living kernels hold at the same time raises, whatever the Manager believes.
    """

    def __init__(self, agent_id: str, *, cores: int = 4, group: str = "default") -> None:
        self.agent_id = AgentId(agent_id)
        self.group = ResourceGroupName(group)
        self.devices = (
            *(Device(CPU, DeviceId(str(i)), 1000) for i in range(cores)),
            Device(MEM, DeviceId("0"), cores * 4 * GIB),
        )
        self.incarnation = f"{agent_id}-1"
        self.version = 1
        self.kernels: dict[KernelId, KernelFact] = {}
        self.specs: dict[KernelId, KernelSpec] = {}
        self.epochs: dict[KernelId, int] = {}
        self.graces: dict[KernelId, float | None] = {}
        """How long the kernels that are to end may take."""
        self.calls: list[tuple[str, Any]] = []
        self.is_down = False
        self.is_quick = False
        """Kernels start, restart and end as soon as they are told to."""
        self.loses_orders = 0
        """How many of the next orders are taken and forgotten."""
        self.delay_s = 0.0
        self.tell: Tell | None = None
        """Takes facts; set by the test to the Manager's ``kernel_facts``."""
        self._held = DeviceMap(self.devices)

    # ── what tests do with it ─────────────────────────────────────────────────────────────────────────────────────

    def report(self) -> NodeReport:
        """Return the node's report."""
        return NodeReport(
            agent_id=self.agent_id,
            incarnation=self.incarnation,
            version=self.version,
            resource_group=self.group,
            architecture="x86_64",
            backend="sim",
            devices=DeviceTable.of(self.devices),
        )

    def reincarnate(self) -> None:
        """The agent process died and came back; what ran on its node still does."""
        self.incarnation = f"{self.agent_id}-{int(self.incarnation.rsplit('-', 1)[1]) + 1}"
        self.is_down = False

    def start(self, kernel_id: KernelId, container_id: str = "") -> KernelFact:
        """A kernel runs from now on."""
        fact = self.kernels[kernel_id]
        container = container_id or f"c-{kernel_id[-6:]}-{fact.attempt}-{self.epochs.get(kernel_id, 0)}"
        return self._set(replace(fact, status=Status.RUNNING, container_id=container))

    def end(self, kernel_id: KernelId, reason: Reason = Reason.SELF_TERMINATED, **more: Any) -> KernelFact:
        """A kernel is gone from now on, and its devices are free."""
        self._held.release(kernel_id)
        return self._set(replace(self.kernels[kernel_id], status=Status.TERMINATED, reason=reason.value, **more))

    def lose_record(self, kernel_id: KernelId) -> KernelFact:
        """The container runs on, and the agent knows no more of it than that."""
        self._held.release(kernel_id)
        return self._set(replace(self.kernels[kernel_id], allocation=Allocation(), has_record=False))

    def finish_startup(self, kernel_id: KernelId, exit_code: int) -> KernelFact:
        """The startup command has ended."""
        return self._set(replace(self.kernels[kernel_id], startup_exit_code=exit_code))

    def alive(self) -> list[KernelId]:
        """Return the kernels that are there and have not ended."""
        return sorted(k for k, fact in self.kernels.items() if fact.status not in TERMINAL)

    def names_of_calls(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _set(self, fact: KernelFact) -> KernelFact:
        self.kernels[fact.kernel_id] = fact
        return fact

    async def _arrive(self, name: str, what: Any) -> bool:
        """Return whether the order is to be carried out."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.is_down:
            raise AgentUnavailable(f"{self.agent_id} is away")
        self.calls.append((name, what))
        if self.loses_orders:
            self.loses_orders -= 1
            return False
        return True

    async def _say(self, facts: Sequence[KernelFact]) -> None:
        if self.is_quick and self.tell is not None and facts:
            await self.tell(facts)

    # ── the contract ──────────────────────────────────────────────────────────────────────────────────────────────

    async def ping(self) -> str:
        return self.incarnation

    async def create_kernels(self, specs: Sequence[KernelSpec]) -> None:
        if not await self._arrive("create", [spec.kernel_id for spec in specs]):
            return
        new: list[KernelFact] = []
        for spec in specs:
            known = self.kernels.get(spec.kernel_id)
            if known is not None and known.has_record and known.attempt >= spec.attempt:
                continue
            self._held.hold(spec.kernel_id, spec.allocation)  # raises when a device is held twice
            self.specs[spec.kernel_id] = spec
            new.append(
                self._set(
                    KernelFact(
                        kernel_id=spec.kernel_id,
                        session_id=spec.session_id,
                        status=Status.PREPARING,
                        attempt=spec.attempt,
                        allocation=spec.allocation,
                    )
                )
            )
        if self.is_quick:
            await self._say([self.start(fact.kernel_id) for fact in new])

    async def destroy_kernels(
        self, kernel_ids: Sequence[KernelId], reason: Reason, *, forced: bool = False, grace_s: float | None = None
    ) -> None:
        if not await self._arrive("destroy", list(kernel_ids)):
            return
        self.graces.update(dict.fromkeys(kernel_ids, grace_s))
        facts: list[KernelFact] = []
        for kernel_id in kernel_ids:
            if kernel_id not in self.kernels:
                self._set(KernelFact(kernel_id=kernel_id, session_id="", status=Status.TERMINATED, attempt=0))
            if self.is_quick or self.kernels[kernel_id].status in TERMINAL:
                facts.append(self.end(kernel_id, reason))
            else:
                self._set(replace(self.kernels[kernel_id], status=Status.TERMINATING))
        await self._say(facts)

    async def restart_kernels(self, kernel_ids: Sequence[KernelId], epoch: int) -> None:
        if not await self._arrive("restart", (list(kernel_ids), epoch)):
            return
        again = [kernel_id for kernel_id in kernel_ids if self.epochs.get(kernel_id, 0) < epoch]
        for kernel_id in again:
            self.epochs[kernel_id] = epoch
            self._set(replace(self.kernels[kernel_id], status=Status.CREATING, container_id=""))
        if self.is_quick:
            await self._say([self.start(kernel_id) for kernel_id in again])

    async def run_startup(self, kernel_id: KernelId, command: str, timeout_s: float | None) -> None:
        await self._arrive("startup", (kernel_id, command))

    async def update_route(self, kernel_id: KernelId, name: str, epoch: int) -> None:
        if await self._arrive("route", (kernel_id, name, epoch)):
            self.epochs[kernel_id] = max(epoch, self.epochs.get(kernel_id, 0))

    async def drop_spares(self) -> int:
        await self._arrive("drop_spares", None)
        return 0

    async def runtimes(self, image: str) -> Sequence[Runtime]:
        await self._arrive("runtimes", image)
        return BUILT_IN

    async def inspect(self) -> Inspection:
        await self._arrive("inspect", None)
        return Inspection(agent_id=self.agent_id, incarnation=self.incarnation, kernels=tuple(self.kernels.values()))

    async def acknowledge(self, kernel_ids: Sequence[KernelId]) -> None:
        if not await self._arrive("acknowledge", list(kernel_ids)):
            return
        for kernel_id in kernel_ids:
            if kernel_id in self.kernels and self.kernels[kernel_id].status in TERMINAL:
                del self.kernels[kernel_id]

    async def logs(self, kernel_id: KernelId) -> bytes:
        await self._arrive("logs", kernel_id)
        if kernel_id not in self.kernels:
            raise KernelNotFound(kernel_id=kernel_id)
        return b"live log"

    # What runs inside kernels is not the Manager's business.

    async def execute(self, request: ExecuteRequest) -> RunOutput:
        raise UnsupportedByImage

    async def complete(self, route: Route, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        raise UnsupportedByImage

    async def interrupt(self, route: Route) -> None:
        raise UnsupportedByImage

    async def list_files(self, route: Route, path: str) -> Sequence[FileEntry]:
        raise UnsupportedByImage

    async def write_file(self, route: Route, path: str, offset: int, data: bytes, *, final: bool) -> None:
        raise UnsupportedByImage

    async def abort_write(self, route: Route, path: str) -> None:
        raise UnsupportedByImage

    async def open_download(self, route: Route, paths: Sequence[str], *, archive: bool) -> Transfer:
        raise UnsupportedByImage

    async def read_download(self, transfer_id: str, offset: int, size: int) -> bytes:
        raise UnsupportedByImage

    async def close_download(self, transfer_id: str) -> None:
        raise UnsupportedByImage

    async def open_pty(self, route: Route, *, rows: int, cols: int, pty_id: str) -> None:
        raise UnsupportedByImage

    async def read_pty(self, route: Route, pty_id: str, after_seq: int, wait_s: float) -> tuple[int, bytes, bool]:
        raise UnsupportedByImage

    async def write_pty(self, route: Route, pty_id: str, data: bytes) -> None:
        raise UnsupportedByImage

    async def resize_pty(self, route: Route, pty_id: str, *, rows: int, cols: int) -> None:
        raise UnsupportedByImage

    async def close_pty(self, route: Route, pty_id: str) -> None:
        raise UnsupportedByImage

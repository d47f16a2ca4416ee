"""The agent of one node: makes, keeps and ends kernels, and is the authority on what runs there.

Guarantees. ``create_kernels`` returns after the orders are on the node's disk, so they are carried out whatever
becomes of this process. Kernels do not depend on the agent: they run on while it is away and are found again. News
are repeated until the Manager has taken them. A failed call may have had its effect; every call may be repeated.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from actors.agent.access import KernelAccess
from actors.agent.backends.base import ComputeBackend, Life
from actors.agent.choosing import choose_backend
from actors.agent.devices.base import DevicePlugin, installed_plugins
from actors.agent.executions import Executions
from actors.agent.facts import FactQueue, FactsTaker
from actors.agent.hardware import Hardware
from actors.agent.held import HeldDevices
from actors.agent.images import ImageDesk
from actors.agent.journal import Journal, KernelRecord, Startup
from actors.agent.kernel import KernelDriver
from actors.agent.linking import connect_kernel
from actors.agent.measuring.collector import UsageCollector
from actors.agent.measuring.telling import UsageTeller
from actors.agent.node import NodeReporter, NodeTaker, PutReport
from actors.agent.offload import Offload
from actors.agent.recovery import Plan, plan_recovery, unexplained
from actors.agent.spares import SparePool
from actors.agent.startup import follow_startup
from actors.agent.strays import SecondLook, Strays, end_of_stray
from actors.agent.transfers import Downloads
from actors.agent.workdir import disk_error
from actors.agent.workshop import ConnectKernel, Workshop
from actors.contracts import Inspection
from backendai_ray.config import Settings
from backendai_ray.core.errors import (
    BackendError,
    Conflict,
    InsufficientResources,
    InvalidParameter,
    Unavailable,
)
from backendai_ray.core.ids import AgentId, KernelId, is_uuid
from backendai_ray.core.measurements import NodeUsage
from backendai_ray.core.sessions import KernelSpec, Reason, Status

log = structlog.get_logger()

SWEEP_INTERVAL_S = 10.0
QUICK_THREADS = 8
SLOW_THREADS = 24
PTY_READ_BYTES = 2**16
SPARES_INTERVAL_S = 0.5
TIDY_INTERVAL_S = 60.0


class ManagerPeer(FactsTaker, NodeTaker, Protocol):
    """What an agent needs of the Manager."""


class Agent(KernelAccess):
    """See :class:`actors.contracts.AgentContract`, which this implements."""

    def __init__(
        self,
        agent_id: AgentId,
        settings: Settings,
        manager: ManagerPeer,
        *,
        put_report: PutReport = lambda report: report,
        backend: ComputeBackend | None = None,
        plugins: Sequence[DevicePlugin] | None = None,
        connect: ConnectKernel | None = None,
    ) -> None:
        self._id = agent_id
        self._settings = settings
        self._manager = manager
        self._put_report = put_report
        self._given_backend = backend
        self._given_plugins = plugins
        self._connect = connect or connect_kernel
        self._incarnation = uuid.uuid4().hex
        self._kernels: dict[KernelId, KernelDriver] = {}
        self._successors: dict[KernelId, KernelSpec] = {}
        self._second_look = SecondLook()
        self._tasks: list[asyncio.Task[None]] = []
        self._startups: dict[Life, asyncio.Task[None]] = {}
        self._executions = Executions()
        self._downloads = Downloads()
        self._sessions_dir = settings.sessions_dir
        self._creating = asyncio.Lock()

    # ── start and end ──────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Open the backend, find again what runs, and begin to report.

        Raises:
            EngineUnavailable, InvalidParameter: the node cannot be used as it is configured.
        """
        self._loop = asyncio.get_running_loop()
        self._offload = Offload(
            quick=QUICK_THREADS, slow=max(SLOW_THREADS, 2 * self._settings.agent.create_concurrency)
        )
        await self._offload.quick(_make_sessions_dir, self._sessions_dir)
        self._sessions_fd = os.open(self._sessions_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._journal = Journal(self._sessions_dir, self._id)
        self._backend: ComputeBackend = await self._open_backend()
        plugins = self._given_plugins if self._given_plugins is not None else installed_plugins(self._settings.agent)
        self._hardware = Hardware(plugins)
        self._usage_teller = UsageTeller(self._settings.bus)
        self._held = HeldDevices()
        self._spares = SparePool(
            self._backend, size=self._settings.agent.warm_pool, uid=self._backend.kernel_uid(KernelId(""))
        )
        self._strays = Strays(self._backend, self._offload)
        self._facts = FactQueue(self._id, self._incarnation, self._manager)
        self._facts.on_send(self._with_log)
        self._workshop = Workshop(
            settings=self._settings,
            backend=self._backend,
            hardware=self._hardware,
            offload=self._offload,
            journal=self._journal,
            facts=self._facts,
            held=self._held,
            spares=self._spares,
            images=ImageDesk(self._backend, self._offload),
            starts=asyncio.Semaphore(self._settings.agent.create_concurrency),
            sessions_fd=self._sessions_fd,
            connect=self._connect,
        )
        self._reporter = NodeReporter(
            agent_id=self._id,
            incarnation=self._incarnation,
            settings=self._settings,
            backend=self._backend,
            hardware=self._hardware,
            held=self._held,
            offload=self._offload,
            manager=self._manager,
            put_report=self._put_report,
            spares=self._spares.counts,
        )
        self._collector = UsageCollector(
            agent_id=self._id,
            backend=self._backend,
            hardware=self._hardware,
            offload=self._offload,
            records=lambda: [driver.record for driver in self._kernels.values()],
            interval_s=self._settings.agent.usage_interval_s,
            disk=self._sessions_dir,
            publish=self._usage_teller.tell,
        )
        await self._reporter.look()
        self._spawn(self._facts.run(), "facts")
        first_report = asyncio.create_task(self._reporter.tell(ready=False))
        await self._recover()
        await self._offload.slow(self._spares.clear_old)
        await first_report
        await self._reporter.tell(ready=True)
        self._spawn(self._reporter.run(), "reporter")
        self._spawn(self._repeat(self._sweep, SWEEP_INTERVAL_S), "sweep")
        self._spawn(self._warm_up(), "warm-up")
        self._spawn(self._collector.run(), "usage")
        self._spawn(self._repeat(self._tidy, TIDY_INTERVAL_S), "tidy")
        if self._spares.is_on:
            self._spawn(self._repeat(self._keep_spares, SPARES_INTERVAL_S), "spares")
        log.info("agent.started", agent_id=self._id, backend=self._backend.name, kernels=len(self._kernels))

    async def _warm_up(self) -> None:
        """Look at the default image now, if it is there, so that the first session need not wait for that."""
        try:
            if self._settings.agent.default_image in await self._offload.slow(self._backend.images):
                await self._offload.slow(self._backend.prepare_image, "python", "")
        except BackendError as error:
            log.info("agent.default_image_not_ready", error=error.message)

    async def _keep_spares(self) -> None:
        """Have spares made while no kernel is being made: those that start now come first."""
        while not any(driver.is_being_made for driver in self._kernels.values()):
            if not await self._offload.slow(self._spares.maintain):
                break

    async def _tidy(self) -> None:
        await self._offload.slow(self._backend.tidy)

    async def drop_spares(self) -> int:
        return await self._offload.slow(self._spares.close)

    async def _open_backend(self) -> ComputeBackend:
        if self._given_backend is None:
            # Kernels of an engine that is away for a moment must not be taken for lost by another backend.
            records = await self._offload.slow(self._journal.load)
            before = {record.backend for record in records if not record.has_ended and record.backend}
            return await self._offload.slow(choose_backend, self._settings, self._id, before)
        await self._offload.slow(self._given_backend.open)
        return self._given_backend

    async def close(self) -> None:
        """Let go of everything; kernels run on."""
        for task in (*self._tasks, *self._startups.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._startups.values(), return_exceptions=True)
        await asyncio.gather(*(driver.detach() for driver in self._kernels.values()), return_exceptions=True)
        self._downloads.close_all()
        await self._offload.slow(self._spares.close)
        await self._offload.slow(self._backend.close)
        await self._usage_teller.close()
        self._hardware.close()
        self._offload.close()
        os.close(self._sessions_fd)

    async def _repeat(self, work: Callable[[], Awaitable[None]], interval_s: float) -> None:
        """Do something again and again, with a pause before each time; a failure costs that time alone."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the next round tries again
                log.warning("agent.round_failed", work=work.__name__, error=str(error)[:300])

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"agent-{name}"))

    # ── recovery ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _recover(self) -> None:
        records, found = await asyncio.gather(
            self._offload.slow(self._journal.load), self._offload.slow(self._backend.list_own)
        )
        # A restart that was ordered goes on with the next life; the present one is left over then.
        records = [r if r.restart_to is None or r.has_ended else r.restarted(r.restart_to) for r in records]
        plan = plan_recovery(records, found)
        for record in records:
            self._kernels[record.spec.kernel_id] = KernelDriver(record, self._workshop, self._on_gone)
            if not record.has_ended:
                self._held.adopt(record.spec.kernel_id, record.spec.allocation)
        self._strays.add(plan.strays)
        await self._offload.slow(self._backend.watch, self._on_backend_end)
        await self._carry_out(plan)
        await self._offload.slow(self._journal.sweep)

    async def _carry_out(self, plan: Plan) -> None:
        for one in plan.leftovers:
            await self._strays.remove(one)  # the sweep tries again
        for kernel_id in plan.ended:
            driver = self._kernels[kernel_id]
            driver.ended.set()
            self._facts.put(driver.fact())
        for kernel_id in plan.to_make:
            self._kernels[kernel_id].start()
        for kernel_id, one in plan.to_adopt.items():
            driver = self._kernels[kernel_id]
            if not one.is_running:
                driver.container_ended(one.life)
            elif driver.record.stop is None:
                driver.change(status=Status.RUNNING)  # callers come at once; whoever does first connects
            driver.start(one)
            self._follow_startup(driver)

    def _on_backend_end(self, life: Life) -> None:
        """Called from the backend's threads."""
        try:
            self._loop.call_soon_threadsafe(self._container_ended, life)
        except RuntimeError:
            pass  # the loop is closed: the agent has left

    def _container_ended(self, life: Life) -> None:
        driver = self._kernels.get(life.kernel_id)
        if driver is not None:
            driver.container_ended(life)

    async def _sweep(self) -> None:
        """Find ends that nobody told of, and what came late; slow, since the backend's own news come first."""
        await self._look_for_changes()
        await self._offload.slow(self._spares.clear_unknown)
        await self._offload.quick(self._downloads.expire)

    async def _look_for_changes(self) -> None:
        candidates = [d.record.life for d in self._kernels.values() if d.record.status is Status.RUNNING]
        found = await self._offload.slow(self._backend.list_own)
        running = {one.life for one in found if one.is_running}
        for life in candidates:
            if life not in running:
                self._container_ended(life)
        leftovers, strays = unexplained({kernel_id: d.record for kernel_id, d in self._kernels.items()}, found)
        came = self._second_look.confirmed([*leftovers, *(one for lives in strays.values() for one in lives)])
        for one in came:
            log.warning("agent.late_life", life=str(one.life), has_record=one.life.kernel_id in self._kernels)
        for fact in self._strays.add(
            {kernel_id: [o for o in lives if o in came] for kernel_id, lives in strays.items()}
        ):
            self._facts.put(fact)
        for one in leftovers:
            if one in came:
                await self._strays.remove(one)

    # ── what the Manager asks ──────────────────────────────────────────────────────────────────────────────────────

    async def ping(self) -> str:
        return self._incarnation

    async def create_kernels(self, specs: Sequence[KernelSpec]) -> None:
        async with self._creating:
            fresh = [spec for spec in specs if await self._is_new(spec)]
            if fresh:
                await self._begin(fresh)

    async def _is_new(self, spec: KernelSpec) -> bool:
        if not is_uuid(spec.kernel_id):
            raise InvalidParameter(f"kernel_id: {spec.kernel_id[:60]!r} is no UUID", field="kernel_id")
        known = self._kernels.get(spec.kernel_id)
        if known is None:
            return True
        if spec.attempt <= known.record.spec.attempt:
            return False
        if not known.record.has_ended:
            # The Manager gave the earlier attempt up while we were still at it: end it, then begin.
            self._successors[spec.kernel_id] = spec
            known.stop(Reason.RETRY, forced=True)
            return False
        await self._forget(known)
        return True

    async def _begin(self, specs: Sequence[KernelSpec]) -> None:
        drivers = [self._new_driver(spec) for spec in specs]
        for driver in drivers:  # known from here on, so that an order to end that comes meanwhile finds them
            self._kernels[driver.record.spec.kernel_id] = driver
        try:
            await self._offload.quick(self._journal.begin, [driver.record for driver in drivers])
        except OSError as error:
            for driver in drivers:
                self._kernels.pop(driver.record.spec.kernel_id, None)
            if isinstance(said := disk_error(error, "kernel.json"), InsufficientResources):
                raise said from error
            raise Unavailable(f"the node cannot record the order: {error}") from error
        for driver in drivers:
            for one in self._strays.adopt(driver.record.life):
                await self._strays.remove(one)  # the sweep tries again
            self._launch(driver)

    def _new_driver(self, spec: KernelSpec) -> KernelDriver:
        record = KernelRecord(
            agent_id=self._id,
            spec=spec,
            uid=self._backend.kernel_uid(spec.kernel_id),
            backend=self._backend.name,
            epoch=spec.epoch,
            route_epoch=spec.epoch,
            session_name=spec.session_name,
        )
        return KernelDriver(record, self._workshop, self._on_gone)

    def _launch(self, driver: KernelDriver) -> None:
        spec = driver.record.spec
        limit = self._settings.agent.max_kernels
        try:
            if limit and len(self._held.holders()) >= limit:
                raise Conflict(f"it has {limit} kernels already, and may have no more (agent.max_kernels)")
            self._held.hold(spec.kernel_id, spec.allocation)
        except Conflict as error:
            log.error("agent.refused", kernel_id=spec.kernel_id, error=error.message)
            driver.refuse(f"the node refuses the placement: {error.message}")
            return
        driver.start()

    def _on_gone(self, driver: KernelDriver) -> None:
        successor = self._successors.pop(driver.record.spec.kernel_id, None)
        if successor is not None:
            self._spawn(self._succeed(driver, successor), "successor")

    async def _succeed(self, driver: KernelDriver, spec: KernelSpec) -> None:
        async with self._creating:
            await self._forget(driver)
            await self._begin([spec])

    async def destroy_kernels(
        self, kernel_ids: Sequence[KernelId], reason: Reason, *, forced: bool = False, grace_s: float | None = None
    ) -> None:
        for kernel_id in kernel_ids:
            driver = self._kernels.get(kernel_id)
            self._successors.pop(kernel_id, None)
            if driver is None:
                self._spawn(self._end_stray(kernel_id, reason), "stray")
            elif driver.record.has_ended:
                self._facts.put(driver.fact())
            else:
                driver.stop(reason, forced=forced, grace_s=grace_s)

    async def _end_stray(self, kernel_id: KernelId, reason: Reason) -> None:
        """End whatever there is of a kernel that we have no record of, and tell that nothing is left."""
        attempt = await self._strays.end(kernel_id)
        if is_uuid(kernel_id) and kernel_id not in self._kernels:
            await self._offload.slow(self._journal.forget, kernel_id)
        self._facts.put(end_of_stray(kernel_id, reason, attempt))

    async def restart_kernels(self, kernel_ids: Sequence[KernelId], epoch: int) -> None:
        for kernel_id in kernel_ids:
            driver = self._known(kernel_id)
            driver.restart(epoch)
            await driver.save()

    async def run_startup(self, kernel_id: KernelId, command: str, timeout_s: float | None) -> None:
        driver = self._known(kernel_id)
        if driver.record.startup is None:
            driver.change(startup=Startup(command=command, timeout_s=timeout_s))
            await driver.save()
        elif driver.record.startup.exit_code is not None:
            self._facts.put(driver.fact())
        self._follow_startup(driver)

    def _follow_startup(self, driver: KernelDriver) -> None:
        life, startup = driver.record.life, driver.record.startup
        if startup is None or startup.exit_code is not None or life in self._startups:
            return
        task = asyncio.create_task(self._finish_startup(driver), name=f"startup-{life}")
        self._startups[life] = task
        task.add_done_callback(lambda _: self._startups.pop(life, None))

    async def _finish_startup(self, driver: KernelDriver) -> None:
        life = driver.record.life
        done = await follow_startup(driver)
        if done is not None and driver.record.life == life and not driver.record.has_ended:
            driver.change(startup=done)
            await driver.save()
            self._facts.put(driver.fact())

    async def update_route(self, kernel_id: KernelId, name: str, epoch: int) -> None:
        driver = self._known(kernel_id)
        if epoch >= driver.record.route_epoch:
            driver.change(session_name=name, route_epoch=epoch)
            await driver.save()

    async def inspect(self) -> Inspection:
        drivers = list(self._kernels.values())
        facts = [
            await self._offload.quick(self._with_log, d.fact()) if d.record.has_ended else d.fact() for d in drivers
        ]
        facts += self._strays.facts()
        return Inspection(agent_id=self._id, incarnation=self._incarnation, kernels=tuple(facts))

    async def usage(self, kernel_ids: Sequence[KernelId] | None = None) -> NodeUsage:
        return self._collector.usage(kernel_ids)

    async def acknowledge(self, kernel_ids: Sequence[KernelId]) -> None:
        for kernel_id in kernel_ids:
            driver = self._kernels.get(kernel_id)
            if driver is not None and driver.record.has_ended:
                await self._forget(driver)

    async def _forget(self, driver: KernelDriver) -> None:
        kernel_id = driver.record.spec.kernel_id
        await driver.forget()
        await self._offload.quick(self._downloads.close_kernel, kernel_id)
        if self._kernels.get(kernel_id) is driver:
            del self._kernels[kernel_id]


def _make_sessions_dir(path: Path) -> None:
    path.mkdir(mode=0o711, parents=True, exist_ok=True)

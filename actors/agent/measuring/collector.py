"""The one task of an agent that measures, at a steady beat that cannot pile up.

A measurement that is still at it when the next is due makes that one be skipped (and counted). One that takes longer
than a beat over its kernels stops there, and the next goes on with the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from actors.agent.backends.base import ComputeBackend, Life
from actors.agent.hardware import Hardware
from actors.agent.journal import KernelRecord
from actors.agent.measuring.reading import NodeFigures, group_text, read_node
from actors.agent.offload import Offload
from backendai_ray.core.device_plugins import DeviceUsage
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import AgentId, DeviceId, KernelId
from backendai_ray.core.measurements import KernelDeviceUsage, KernelUsage, NodeUsage
from backendai_ray.core.sessions import Status
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, SlotName

log = structlog.get_logger()

Publish = Callable[[NodeUsage], None]


class UsageCollector:
    """Measures, and remembers the last measurement of everything that still runs."""

    def __init__(
        self,
        *,
        agent_id: AgentId,
        backend: ComputeBackend,
        hardware: Hardware,
        offload: Offload,
        records: Callable[[], Sequence[KernelRecord]],
        interval_s: float,
        disk: Path,
        publish: Publish = lambda usage: None,
        node: Callable[[Path], NodeFigures] = read_node,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep what to measure.

        Args:
            agent_id: Whose node it is.
            backend: Measures kernels.
            hardware: Measures devices.
            offload: Where measuring blocks.
            records: Returns the kernels' records as they are now; called in the event loop.
            interval_s: The beat.
            disk: A folder on the disk that counts.
            publish: Told of every measurement, in the event loop.
            node: Measures the machine.
            clock: Returns Unix seconds.
        """
        self._agent_id = agent_id
        self._backend = backend
        self._hardware = hardware
        self._offload = offload
        self._records = records
        self._interval_s = interval_s
        self._disk = disk
        self._publish = publish
        self._node = node
        self._clock = clock
        self._last = NodeUsage(agent_id=agent_id)
        self._known: dict[Life, KernelUsage] = {}
        self._next = 0
        self._skipped = 0
        self._round: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Measure for ever; only cancelling ends it."""
        try:
            while True:
                self.beat()
                await asyncio.sleep(self._interval_s)
        finally:
            if self._round is not None:
                self._round.cancel()

    def beat(self) -> asyncio.Task[None]:
        """Begin a measurement, unless one is at it; returns the one that is."""
        if self._round is not None and not self._round.done():
            self._skipped += 1
            self._last = replace(self._last, rounds_skipped=self._skipped)
            return self._round
        self._round = asyncio.create_task(self._measure(), name="agent-measurement")
        return self._round

    def usage(self, kernel_ids: Sequence[KernelId] | None = None) -> NodeUsage:
        """Return the last measurement, with every kernel that runs now (or those); new ones are not measured yet."""
        running = [record for record in self._records() if record.status is Status.RUNNING]
        wanted = [r for r in running if kernel_ids is None or r.spec.kernel_id in kernel_ids]
        return replace(self._last, kernels=tuple(self._known.get(r.life) or _described(r) for r in wanted))

    async def _measure(self) -> None:
        running = [record for record in self._records() if record.status is Status.RUNNING]
        try:
            self._last = await self._offload.slow(self._measure_all, running)
        except Exception as error:  # noqa: BLE001 - the next beat tries again, whatever it was
            log.warning("usage.not_measured", error=str(error)[:300] or repr(error))
            return
        self._publish(self._last)

    # ── in a worker thread ────────────────────────────────────────────────────────────────────────────────────────

    def _measure_all(self, running: Sequence[KernelRecord]) -> NodeUsage:
        before, at = self._last, self._clock()
        figures = self._node(self._disk)
        devices = self._hardware.usage()
        self._measure_kernels(running, {(one.slot, one.id): one for one in devices})
        return NodeUsage(
            agent_id=self._agent_id,
            measured_at=at,
            cpu_ns=figures.cpu_ns,
            cpu_used=rate(before.cpu_ns, before.measured_at, figures.cpu_ns, at),
            memory_bytes=figures.memory_bytes,
            memory_total=figures.memory_total,
            disk_bytes=figures.disk_bytes,
            disk_total=figures.disk_total,
            net_rx_bytes=figures.net_rx_bytes,
            net_tx_bytes=figures.net_tx_bytes,
            devices=devices,
            kernels=tuple(self._known[record.life] for record in running if record.life in self._known),
            rounds=before.rounds + 1,
            rounds_skipped=self._skipped,
        )

    def _measure_kernels(
        self, running: Sequence[KernelRecord], devices: Mapping[tuple[SlotName, DeviceId], DeviceUsage]
    ) -> None:
        lives = {record.life for record in running}
        self._known = {life: usage for life, usage in self._known.items() if life in lives}
        give_up_at = time.monotonic() + self._interval_s
        owners = _owners(running, devices)
        for step in range(len(running)):
            record = running[(self._next + step) % len(running)]
            if step and time.monotonic() > give_up_at:
                self._next = (self._next + step) % len(running)
                return
            try:
                said = self._backend.stats(record.life)
            except BackendError as error:
                log.debug("usage.kernel_not_measured", kernel_id=record.spec.kernel_id, error=error.message)
                continue
            self._known[record.life] = self._kernel(record, said, devices, owners)

    def _kernel(
        self,
        record: KernelRecord,
        said: Mapping[str, int],
        devices: Mapping[tuple[SlotName, DeviceId], DeviceUsage],
        owners: Mapping[int, KernelId],
    ) -> KernelUsage:
        at, before = self._clock(), self._known.get(record.life)
        cpu_ns = said.get("cpu_ns")
        return replace(
            _described(record),
            measured_at=at,
            cpu_ns=cpu_ns,
            cpu_used=rate(before.cpu_ns, before.measured_at, cpu_ns, at) if before else None,
            memory_bytes=said.get("memory_bytes"),
            io_read_bytes=said.get("io_read_bytes"),
            io_write_bytes=said.get("io_write_bytes"),
            net_rx_bytes=said.get("net_rx_bytes"),
            net_tx_bytes=said.get("net_tx_bytes"),
            pids=said.get("pids"),
            devices=tuple(
                _part(record, slot, device, units, devices[slot, device], owners)
                for slot, device, units in record.spec.allocation.parts
                if (slot, device) in devices
            ),
        )


def rate(before: int | None, before_at: float | None, now: int | None, now_at: float) -> float | None:
    """Return the cores in use between two readings of CPU time in ns; ``None`` where they say nothing of it."""
    if before is None or before_at is None or now is None or now_at <= before_at or now < before:
        return None
    return round((now - before) / 1e9 / (now_at - before_at), 4)


def _described(record: KernelRecord) -> KernelUsage:
    """Return what is known of a kernel without a measurement."""
    spec = record.spec
    slots = spec.allocation.slots()
    cores, memory = slots.amount(CPU), slots.amount(MEM)
    return KernelUsage(
        kernel_id=spec.kernel_id,
        session_id=spec.session_id,
        session_name=record.session_name or spec.session_name,
        hostname=spec.hostname,
        cpu_limit=cores / UNITS_PER_COUNT if cores else None,
        memory_limit=memory or None,
        advisory=record.advisory,
    )


def _part(
    record: KernelRecord,
    slot: SlotName,
    device: DeviceId,
    units: int,
    usage: DeviceUsage,
    owners: Mapping[int, KernelId],
) -> KernelDeviceUsage:
    own = sum(size for pid, size in usage.processes.items() if owners.get(pid) == record.spec.kernel_id)
    is_whole = units >= UNITS_PER_COUNT
    return KernelDeviceUsage(
        slot=slot,
        id=device,
        units=units,
        utilization=usage.utilization,
        memory_used=usage.memory_used if is_whole else own if usage.processes else None,
        memory_total=usage.memory_total,
    )


def _owners(
    running: Sequence[KernelRecord], devices: Mapping[tuple[SlotName, DeviceId], DeviceUsage]
) -> dict[int, KernelId]:
    """Return whose the processes are that use devices: the kernel whose container their control group names."""
    owners: dict[int, KernelId] = {}
    for pid in {pid for usage in devices.values() for pid in usage.processes}:
        text = group_text(pid)
        for record in running:
            if str(record.life) in text or (record.container_id and record.container_id in text):
                owners[pid] = record.spec.kernel_id
    return owners

"""What the agent says of its node: reports when something changed, and a heartbeat in between."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from actors.agent.backends.base import ComputeBackend
from actors.agent.hardware import Hardware, HardwareFacts
from actors.agent.held import HeldDevices
from actors.agent.offload import Offload
from backendai_ray.config import MIB, Settings
from backendai_ray.core.errors import AgentNotFound, BackendError
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.reports import DeviceTable, NodeReport

log = structlog.get_logger()

CALL_TIMEOUT_S = 10.0
LOOK_INTERVAL_S = 5.0
INTRODUCTION_INTERVAL_S = 0.25
"""Between tries to introduce ourselves to a Manager that is away: it schedules nothing here before."""
DISK_NEARLY_FULL_BYTES = 512 * MIB
_Facts = tuple[HardwareFacts, tuple[str, ...], tuple[tuple[str, str], ...], str]


class NodeTaker(Protocol):
    """The part of the Manager that takes reports."""

    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None: ...
    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None: ...


PutReport = Callable[[NodeReport], Awaitable[object] | object]
"""Puts a report where readers can map it, and returns what is passed on instead of it."""


class NodeReporter:
    """Looks at the node every few seconds; sends a new version of the report only when it says something new."""

    def __init__(
        self,
        *,
        agent_id: AgentId,
        incarnation: str,
        settings: Settings,
        backend: ComputeBackend,
        hardware: Hardware,
        held: HeldDevices,
        offload: Offload,
        manager: NodeTaker,
        put_report: PutReport,
        spares: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._agent_id = agent_id
        self._incarnation = incarnation
        self._settings = settings
        self._backend = backend
        self._hardware = hardware
        self._held = held
        self._offload = offload
        self._manager = manager
        self._put_report = put_report
        self._spares = spares
        self._facts: _Facts | None = None
        self._version = 0
        self._passed_on: object = None
        self._ready = False
        self._is_told = False

    async def look(self) -> None:
        """Find out what the node is now; also what the held devices are checked against."""
        facts = await self._offload.slow(self._look)
        if facts == self._facts:
            return
        self._facts = facts
        self._held.set_devices(facts[0].devices)
        self._version += 1
        put = self._put_report(self._report(facts))
        self._passed_on = await put if isinstance(put, Awaitable) else put
        self._is_told = False

    async def tell(self, *, ready: bool) -> bool:
        """Send the report if the Manager does not have it yet; returns whether it has it now."""
        if self._is_told and ready == self._ready:
            return True
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._manager.node_report(
                    self._agent_id, self._incarnation, self._version, self._passed_on, ready=ready
                )
        except Exception as error:  # noqa: BLE001 - a Manager that is away, restarting or broken is asked again
            log.warning("node.report_not_taken", version=self._version, error=str(error).strip()[-200:] or repr(error))
            return False
        self._ready, self._is_told = ready, True
        return True

    async def run(self) -> None:
        """Report and give signs of life for ever; only cancelling ends it."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_INTERVAL_S
        while True:
            interval_s = self._settings.agent.heartbeat_interval_s
            await asyncio.sleep(interval_s if self._is_told else min(interval_s, INTRODUCTION_INTERVAL_S))
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + LOOK_INTERVAL_S
                    await self.look()
                if await self.tell(ready=True):
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await self._manager.heartbeat(self._agent_id, self._incarnation)
            except AgentNotFound:
                self._is_told = False  # a Manager that does not know us: introduce ourselves again
            except Exception as error:  # noqa: BLE001 - the next round tries again
                self._is_told = False
                log.warning("node.heartbeat_not_taken", error=str(error).strip()[-200:] or repr(error))

    def _look(self) -> _Facts:
        info = self._backend.probe()
        health = self._backend.health() or self._disk_health()
        try:
            images = tuple(self._backend.images()) if not health else ()
        except BackendError as error:
            images, health = (), error.message
        if not images and self._facts is not None:
            images = self._facts[1]
        hardware = self._hardware.look()
        own = {"hostname": socket.gethostname(), "architecture": info.architecture}
        labels = {**self._settings.agent.labels, **info.labels, **own}
        if spares := self._spares():
            labels["warm-pool"] = ", ".join(f"{image}={count}" for image, count in sorted(spares.items()))
        return hardware, images, tuple(sorted(labels.items())), health

    def _disk_health(self) -> str:
        folder = self._settings.sessions_dir
        free = shutil.disk_usage(folder if folder.exists() else os.path.sep).free
        if free < DISK_NEARLY_FULL_BYTES:
            return f"the disk of {folder} is nearly full: {free // MIB} MiB are free"
        return ""

    def _report(self, facts: _Facts) -> NodeReport:
        hardware, images, labels, health = facts
        return NodeReport(
            agent_id=self._agent_id,
            incarnation=self._incarnation,
            version=self._version,
            resource_group=ResourceGroupName(self._settings.agent.resource_group),
            architecture=dict(labels)["architecture"],
            backend=self._backend.name,
            devices=DeviceTable.of(hardware.devices),
            machine=hardware.machine,
            notes=hardware.notes,
            images=images,
            labels=dict(labels),
            health=health,
        )

"""Waking the scheduler: coalesced, never waited for, and safe to lose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from actors.contracts import SokovanContract
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import ResourceGroupName

log = structlog.get_logger()

CALL_TIMEOUT_S = 5.0


class Waker:
    """One call at a time per resource group; what comes meanwhile makes one more."""

    def __init__(self, sokovan: SokovanContract) -> None:
        self._sokovan = sokovan
        self._wanted: dict[ResourceGroupName, str] = {}
        self._running: dict[ResourceGroupName, asyncio.Task[None]] = {}

    def wake(self, groups: Iterable[ResourceGroupName], why: str) -> None:
        """Have a scheduling pass run soon in each of the groups."""
        for group in groups:
            self._wanted[group] = why
            if group not in self._running:
                self._running[group] = asyncio.create_task(self._run(group))

    async def settle(self) -> None:
        """Wait until no call is on its way."""
        while running := list(self._running.values()):
            await asyncio.gather(*running)

    async def stop(self) -> None:
        """Drop calls that are on their way."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, group: ResourceGroupName) -> None:
        try:
            while (why := self._wanted.pop(group, None)) is not None:
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):  # wait_for would lose a cancellation now and then
                        await self._sokovan.wake(group, why)
                except (BackendError, TimeoutError) as exc:
                    log.info("sokovan.not_woken", group=group, why=why, error=repr(exc))
        finally:
            self._running.pop(group, None)

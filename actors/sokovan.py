"""Sokovan, the scheduler: it runs a pass whenever something changed, for each resource group on its own.

It owns nothing: after a restart it asks the Manager for the groups, and each group's first pass fetches the world.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any
from uuid import uuid4

import structlog

from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.scheduling import PendingSession

from .contracts import ManagerContract, PolicyHostContract
from .group_scheduler import GroupScheduler, leave_host

log = structlog.get_logger()

_STOP_ATTEMPTS = 5


class Sokovan:
    """Wakes the schedulers of the resource groups."""

    def __init__(
        self,
        settings: Settings,
        *,
        manager: ManagerContract,
        connect_host: Callable[[ResourceGroupName], Awaitable[PolicyHostContract]],
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
        replace_host: Callable[[ResourceGroupName], Awaitable[None]] | None = None,
    ) -> None:
        """Make Sokovan; the work begins with :meth:`start`.

        Args:
            settings: The cluster's settings.
            manager: The Manager.
            connect_host: Returns the policy actor of a group, made if need be.
            clock: Unix seconds.
            random: Spreads retries.
            replace_host: Ends the process of a group's policy actor that hangs, so that a fresh one takes its name.
        """
        self._sweep_interval_s = settings.scheduler.sweep_interval_s
        self._manager = manager
        self._connect_host = connect_host
        self._replace_host = replace_host or leave_host
        self._clock = clock
        self._random = random or Random()
        self._incarnation = uuid4().hex[:12]
        self._groups: dict[ResourceGroupName, GroupScheduler] = {}
        self._loops: dict[ResourceGroupName, asyncio.Task[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._sweep_now = asyncio.Event()

    async def start(self) -> None:
        """Learn the groups and begin; repeating it changes nothing.

        Raises:
            Unavailable: the Manager does not answer yet.
        """
        if self._sweeper is None:
            await self._learn_groups()
            self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End all loops."""
        tasks = [*self._loops.values(), *([self._sweeper] if self._sweeper else [])]
        self._loops.clear()
        self._groups.clear()
        self._sweeper = None
        still = set(tasks)
        for _ in range(_STOP_ATTEMPTS):
            if not still:
                break
            for task in still:
                task.cancel()
            # Again, should a call on the way have lost the cancellation.
            _, still = await asyncio.wait(still, timeout=1.0)

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        """Something changed: run a pass soon. Cheap, coalesced, and safe to lose."""
        scheduler = self._groups.get(group)
        if scheduler is None:
            log.info("sokovan.unknown_group_woken", group=group, why=why)
            self._sweep_now.set()
            return
        scheduler.wake()

    async def explain(self, group: ResourceGroupName, session_id: SessionId) -> Explanation:
        """Return why a pending session waits (or where it goes if a pass ran now), and when it may start.

        Raises:
            InvalidParameter: there is no such resource group.
            SessionNotFound: the session is not waiting.
            Unavailable: the Manager or the policy actor is away.
        """
        return await (await self._scheduler(group)).explain(session_id)

    async def rehearse(self, group: ResourceGroupName, session: PendingSession) -> Explanation:
        """Return what would become of a session if it were submitted now; it is not.

        Raises:
            InvalidParameter: there is no such resource group.
            Unavailable: the Manager or the policy actor is away.
        """
        return await (await self._scheduler(group)).rehearse(session)

    async def propose_moves(self, group: ResourceGroupName, request: MoveRequest, *, apply: bool) -> Proposal:
        """Return the moves of running sessions that would let a waiting one start; with ``apply``, carry them out.

        Raises:
            InvalidParameter: there is no such resource group.
            SessionNotFound: the session is not waiting.
            Unavailable: the Manager or the policy actor is away.
        """
        return await (await self._scheduler(group)).propose_moves(request, apply=apply)

    async def _scheduler(self, group: ResourceGroupName) -> GroupScheduler:
        if group not in self._groups:
            await self._learn_groups()
        scheduler = self._groups.get(group)
        if scheduler is None:
            raise InvalidParameter(f"group: there is no resource group {group!r}", field="group")
        return scheduler

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return counters by resource group."""
        return {group: scheduler.stats() for group, scheduler in self._groups.items()}

    async def _sweep(self) -> None:
        """Look for new, changed and removed groups; each group's own loop sees to lost wakes."""
        while True:
            try:
                async with asyncio.timeout(self._sweep_interval_s):
                    await self._sweep_now.wait()
            except TimeoutError:
                pass  # the interval has passed
            self._sweep_now.clear()
            try:
                await self._learn_groups()
            except Unavailable as exc:
                log.warning("sokovan.groups_unknown", error=exc.message)
            except Exception:
                log.exception("sokovan.sweep_failed")

    async def _learn_groups(self) -> None:
        configs = await self._manager.groups()
        for group in self._groups.keys() - configs.keys():
            log.info("sokovan.group_removed", group=group)
            del self._groups[group]
            self._loops.pop(group).cancel()
        for group, config in configs.items():
            known = self._groups.get(group)
            if known is not None:
                known.reconfigure(config)
                continue
            self._groups[group] = scheduler = GroupScheduler(
                group,
                config,
                manager=self._manager,
                connect_host=self._connect_host,
                sweep_interval_s=self._sweep_interval_s,
                pass_prefix=self._incarnation,
                random=self._random,
                clock=self._clock,
                replace_host=self._replace_host,
            )
            self._loops[group] = asyncio.create_task(scheduler.run(), name=f"scheduler-{group}")

"""News of kernels on their way to the Manager: repeated until it has taken them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import Status

log = structlog.get_logger()

CALL_TIMEOUT_S = 15.0
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0
MAX_BATCH = 64
GATHER_S = 0.05
"""How long news of mere progress gather; starting a kernel needs the processors more than those who watch it do."""


class FactsTaker(Protocol):
    """The part of the Manager that takes facts."""

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None: ...


class FactQueue:
    """Holds the news not yet taken: per kernel the newest, but for a start, which is never skipped over.

    (The end of a kernel whose start was never heard of would look like a failed start.)
    """

    def __init__(self, agent_id: AgentId, incarnation: str, manager: FactsTaker) -> None:
        self._agent_id = agent_id
        self._incarnation = incarnation
        self._manager = manager
        self._waiting: dict[KernelId, list[KernelFact]] = {}
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        self._complete: Callable[[KernelFact], KernelFact] = lambda fact: fact

    def on_send(self, complete: Callable[[KernelFact], KernelFact]) -> None:
        """Let facts be completed just before they leave (with the log, which is not kept in memory)."""
        self._complete = complete

    def put(self, fact: KernelFact) -> None:
        """Queue a fact; it replaces what is older and still waiting."""
        waiting = self._waiting.setdefault(fact.kernel_id, [])
        waiting[:] = [one for one in waiting if one.attempt == fact.attempt and _must_precede(one, fact)]
        waiting.append(fact)
        self._news.set()
        if _is_urgent(fact):
            self._urgent.set()

    def is_empty(self) -> bool:
        return not self._waiting

    async def run(self) -> None:
        """Send for ever; only cancelling ends it."""
        delay = FIRST_RETRY_S
        while True:
            await self._news.wait()
            await self._gather()
            batch = [fact for facts in self._waiting.values() for fact in facts][:MAX_BATCH]
            if not batch:
                self._news.clear()
                continue
            if await self._send(batch):
                delay = FIRST_RETRY_S
            else:
                await asyncio.sleep(delay)
                delay = min(LAST_RETRY_S, delay * 2)

    async def _gather(self) -> None:
        """Wait for more, unless somebody waits for what there is."""
        if not any(_is_urgent(fact) for facts in self._waiting.values() for fact in facts):
            self._urgent.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._urgent.wait()

    async def _send(self, batch: list[KernelFact]) -> bool:
        try:
            complete = batch
            if any(map(_has_log, batch)):  # logs are read from disk: all in one visit to a thread
                complete = await asyncio.to_thread(lambda: [self._complete(f) if _has_log(f) else f for f in batch])
            async with asyncio.timeout(CALL_TIMEOUT_S):  # wait_for would lose a cancellation now and then
                await self._manager.kernel_facts(self._agent_id, self._incarnation, complete)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the Manager, the facts must get there
            log.warning("facts.not_taken", count=len(batch), error=str(error).strip()[-200:] or repr(error))
            return False
        for fact in batch:
            # By identity: an equal fact that was put meanwhile is news.
            waiting = self._waiting.get(fact.kernel_id, [])
            waiting[:] = [one for one in waiting if one is not fact]
            if not waiting:
                self._waiting.pop(fact.kernel_id, None)
        return True


def _must_precede(older: KernelFact, newer: KernelFact) -> bool:
    return older.status is Status.RUNNING and newer.status is not Status.RUNNING


def _is_urgent(fact: KernelFact) -> bool:
    return fact.status in (Status.RUNNING, Status.TERMINATED)


def _has_log(fact: KernelFact) -> bool:
    return fact.status is Status.TERMINATED

"""Worker threads for everything that blocks: the event loop never waits for an engine or a disk."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Offload:
    """Two pools: a quick one for what takes milliseconds, a slow one for pulls, waits and archives."""

    def __init__(self, *, quick: int, slow: int) -> None:
        self._quick = ThreadPoolExecutor(quick, thread_name_prefix="agent-quick")
        self._slow = ThreadPoolExecutor(slow, thread_name_prefix="agent-slow")

    async def quick(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that takes milliseconds; it goes on when the caller is cancelled."""
        return await self._run(self._quick, functools.partial(function, *args, **kwargs))

    async def slow(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that may take seconds or minutes; it goes on when the caller is cancelled."""
        return await self._run(self._slow, functools.partial(function, *args, **kwargs))

    async def _run(self, pool: Executor, job: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, job)

    def close(self) -> None:
        """Take nothing new; quick jobs are waited for (milliseconds), slow ones end by themselves."""
        self._quick.shutdown(wait=True, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)

"""An event loop whose clock stands still while something happens and jumps when nothing does.

Hours of a cluster's life pass in the time that the code itself takes, and the same program takes the same steps in the
same order every time. What runs on it must not use threads, sockets or the real clock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_STEPS_AT_ONCE = 200_000
"""So many rounds without time passing are a loop that never ends."""


class StandsStill(RuntimeError):
    """Nothing will ever happen again, or everything happens at once for ever."""


class _Selector(selectors.DefaultSelector):
    """Does not wait for anything: it lets the time pass instead."""

    def __init__(self, pass_time: Callable[[float | None], None]) -> None:
        super().__init__()
        self._pass_time = pass_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._pass_time(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._now = 0.0
        self._rounds = 0
        super().__init__(_Selector(self._pass))

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run at once: a thread would come back when it likes."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:  # noqa: BLE001 - whoever awaits it gets it
            future.set_exception(exc)
        return future

    def _pass(self, timeout: float | None) -> None:
        if timeout is None:
            raise StandsStill("nothing is scheduled, and nobody will wake anybody")
        if timeout > 0:
            self._now += timeout
            self._rounds = 0
            return
        self._rounds += 1
        if self._rounds > _MOST_STEPS_AT_ONCE:
            raise StandsStill(f"time does not go on at {self._now:.3f} s")


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time.

    Raises:
        StandsStill: it waits for something that can never come.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)

"""An event loop in a thread of its own, so that plain code (with or without a running loop) can use async code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_CLEANUP_S = 5.0


class _End:
    """Stands for the end of an iteration."""


_END: Final = _End()


class LoopThread:
    """Runs coroutines for any number of threads; started with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end and return its result; Ctrl-C cancels it and lets it clean up.

        Raises:
            RuntimeError: called from within the loop (such as a progress callback), which would wait for itself.
        """
        loop = self._running()
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a progress callback cannot call the client that calls it")
        cleaned_up = threading.Event()

        async def guarded() -> _T:
            try:
                return await work
            finally:
                cleaned_up.set()

        future = asyncio.run_coroutine_threadsafe(guarded(), loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            cleaned_up.wait(_CLEANUP_S)
            raise

    def iterate(self, items: AsyncIterator[_T], *, close: bool = True) -> Iterator[_T]:
        """Yield from an asynchronous iterator; leaving early closes it, unless it may be read on later."""
        try:
            while not isinstance(item := self.call(_next(items)), _End):
                yield item
        finally:
            aclose = getattr(items, "aclose", None)
            if close and aclose is not None:
                self.call(aclose())

    def stop(self) -> None:
        """End the loop and its thread; a later call starts another."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLEANUP_S)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name="backendai-client", daemon=True
                )
                self._thread.start()
            return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _next(items: AsyncIterator[_T]) -> _T | _End:
    return await anext(items, _END)

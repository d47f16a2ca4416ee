"""Runs code that may hang or raise, in a thread of its own, without letting it harm the caller.

A thread cannot be killed. One that overstays is asked to end by an exception raised inside it, which ends a loop of
Python code; one that sleeps or waits in C sees it when it comes back. Either way the caller has gone on.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Hung(Exception):
    """The call did not end in time."""

    def __init__(self, message: str, thread: threading.Thread) -> None:
        super().__init__(message)
        self.thread = thread
        """In which it may go on: code that waits in C is stopped only when it comes back."""


class _Overstayed(BaseException):
    """Raised inside a thread whose time is up."""


async def run_contained(call: Callable[[], T], timeout_s: float, *, name: str) -> T:
    """Return what ``call`` returns.

    Args:
        call: What to run; it must not share what it changes with a later call, since it may go on after its time.
        timeout_s: How long to wait for it.
        name: The thread's name, for those who look at stacks.

    Raises:
        Hung: it did not end in time.
        Exception: what it raised; what is no ``Exception`` (``SystemExit``) comes as a ``RuntimeError``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[list[T], BaseException | None]] = loop.create_future()

    def settle(results: list[T], error: BaseException | None) -> None:
        if not done.done():
            done.set_result((results, error))

    def work() -> None:
        results: list[T] = []
        error: BaseException | None = None
        try:
            try:
                results.append(call())
            except BaseException as exc:  # noqa: BLE001 - handed to the caller, whatever it is
                error = exc
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, results, error)
        except _Overstayed:
            pass  # the caller has gone on already

    # A daemon, so that a thread that never ends does not keep the process.
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(timeout_s):
            results, error = await done
    except TimeoutError:
        _ask_to_end(thread)
        raise Hung(f"no answer within {timeout_s:g} s", thread) from None
    except asyncio.CancelledError:
        _ask_to_end(thread)
        raise
    if isinstance(error, Exception):
        raise error
    if error is not None:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return results[0]


def _ask_to_end(thread: threading.Thread) -> None:
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Overstayed))

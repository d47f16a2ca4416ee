"""Waiting on a condition with a deadline: the only way tests wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float = 10.0,
    interval_s: float = 0.02,
    story: str | Callable[[], str] = "",
) -> T:
    """Returns the first true value of ``condition``.

    Args:
        condition: Asked again and again; an exception it raises is a failure at once.
        timeout_s: When to give up.
        interval_s: Between two questions.
        story: What the failure should tell, or how to find it out then.

    Raises:
        AssertionError: The condition never became true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_failure(timeout_s, value, story))
        time.sleep(interval_s)
    return value


async def wait_until_async(
    condition: Callable[[], Awaitable[T]],
    *,
    timeout_s: float = 10.0,
    interval_s: float = 0.02,
    story: str | Callable[[], str] = "",
) -> T:
    """The same for a condition that must be awaited."""
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_failure(timeout_s, value, story))
        await asyncio.sleep(interval_s)
    return value


def _failure(timeout_s: float, value: object, story: str | Callable[[], str]) -> str:
    told = story() if callable(story) else story
    return f"not so after {timeout_s:g} s (last: {value!r}){': ' + told if told else ''}"

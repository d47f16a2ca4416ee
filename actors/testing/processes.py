"""Processes inside one event loop: each has its tasks, and can be killed with all of them at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_owner: ContextVar[Process | None] = ContextVar("process", default=None)


class Process:
    """What a task of a process starts belongs to the process too, as long as :func:`own_tasks` is in force."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order: sets of tasks have none

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something in the process."""
        context = copy_context()
        context.run(_owner.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def kill(self) -> None:
        """End everything in it, without a word to anybody."""
        self.is_alive = False
        for task in list(self._tasks):
            task.cancel()

    def take(self, task: asyncio.Task[Any]) -> None:
        """Make a task one of the process's."""
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        if not self.is_alive:
            task.cancel()


def own_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let every task of this loop belong to the process whose code starts it."""

    def make(
        loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None, **more: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context, **more)
        owner = _owner.get() if context is None else context.get(_owner)
        if owner is not None:
            owner.take(task)
        return task

    loop.set_task_factory(make)

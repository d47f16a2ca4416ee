"""Images on their way: one piece of work per image, however many kernels wait for it, and all hear how far it is."""

from __future__ import annotations

import asyncio

from actors.agent.backends.base import ComputeBackend, PreparedImage, Tell
from actors.agent.offload import Offload


class ImageDesk:
    """Has images prepared by the backend. For one event loop."""

    def __init__(self, backend: ComputeBackend, offload: Offload) -> None:
        self._backend = backend
        self._offload = offload
        self._jobs: dict[tuple[str, str], _Job] = {}

    async def prepare(self, reference: str, architecture: str, tell: Tell) -> PreparedImage:
        """Return an image that is ready; a caller who is cancelled leaves the work to the others.

        Args:
            reference: As the user named it.
            architecture: As ``uname -m`` says it; empty: the node's.
            tell: Hears how far it is, in the event loop, from where it stands on.

        Raises:
            BackendError: what the backend raises; everybody who waits gets it.
        """
        key = (reference, architecture)
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job()
            job.task = asyncio.create_task(self._work(key, job))
        job.listeners.append(tell)
        if job.last:
            tell(job.last)
        try:
            return await asyncio.shield(job.task)
        finally:
            job.listeners.remove(tell)

    async def _work(self, key: tuple[str, str], job: _Job) -> PreparedImage:
        loop = asyncio.get_running_loop()

        def say(sentence: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(job.say, sentence)

        try:
            return await self._offload.slow(self._backend.prepare_image, *key, say)
        finally:
            del self._jobs[key]


class _Job:
    """One image's work and who waits for it."""

    task: asyncio.Task[PreparedImage]

    def __init__(self) -> None:
        self.listeners: list[Tell] = []
        self.last = ""

    def say(self, sentence: str) -> None:
        self.last = sentence
        for tell in list(self.listeners):
            tell(sentence)

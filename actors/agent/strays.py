"""Lives that no record explains: told to the Manager, who alone says which of them nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import structlog

from actors.agent.backends.base import ComputeBackend, Found, Life
from actors.agent.offload import Offload
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import Reason, Status

log = structlog.get_logger()

RETRY_S = 1.0


class Strays:
    """The strays of one node."""

    def __init__(self, backend: ComputeBackend, offload: Offload) -> None:
        self._backend = backend
        self._offload = offload
        self._lives: dict[KernelId, list[Found]] = {}

    def add(self, found: Mapping[KernelId, Sequence[Found]]) -> list[KernelFact]:
        """Take what was found; returns what the Manager has not been told yet."""
        news = []
        for kernel_id, lives in found.items():
            known = {one.life for one in self._lives.get(kernel_id, ())}
            if fresh := [one for one in lives if one.life not in known]:
                self._lives.setdefault(kernel_id, []).extend(fresh)
                news.append(self._fact(kernel_id))
        return news

    def facts(self) -> list[KernelFact]:
        """Return what the Manager is told of all of them."""
        return [self._fact(kernel_id) for kernel_id in self._lives]

    def _fact(self, kernel_id: KernelId) -> KernelFact:
        newest = max(self._lives[kernel_id], key=lambda one: (one.life.attempt, one.life.epoch))
        return KernelFact(
            kernel_id=kernel_id,
            session_id=newest.session_id,
            status=Status.RUNNING,
            message="found on the node without a record",
            container_id=newest.container_id,
            attempt=newest.life.attempt,
            has_record=False,
        )

    def adopt(self, life: Life) -> list[Found]:
        """A record for one of them is there again; returns the kernel's other lives, which are left over."""
        return [one for one in self._lives.pop(life.kernel_id, []) if one.life != life]

    async def end(self, kernel_id: KernelId) -> int:
        """End whatever there is of a kernel; returns the attempt it was of, 0 when there was nothing."""
        attempt = 0
        for one in self._lives.get(kernel_id, []):
            attempt = max(attempt, one.life.attempt)
            while True:
                if await self.remove(one):
                    break
                await asyncio.sleep(RETRY_S)  # until the engine does it: nobody else would
        self._lives.pop(kernel_id, None)
        return attempt

    async def remove(self, one: Found) -> bool:
        """Stop and remove a life; returns whether it is gone."""
        gang = SessionId(one.session_id) if one.session_id else None
        try:
            await self._offload.slow(self._backend.stop, one.life, 0.0)
            await self._offload.slow(self._backend.remove, one.life, gang)
        except BackendError as error:
            log.warning("agent.life_stays", life=str(one.life), error=error.message)
            return False
        return True


class SecondLook:
    """Lets pass only what is seen twice in a row.

    A list of lives may be older than what was done since it was asked for. What is still there the next time came to
    stay: an order that an earlier agent gave may be carried out by a slow engine long after that agent was killed.
    """

    def __init__(self) -> None:
        self._seen: set[Life] = set()

    def confirmed(self, found: Iterable[Found]) -> list[Found]:
        """Return those that were given the last time as well."""
        found = list(found)
        again = [one for one in found if one.life in self._seen]
        self._seen = {one.life for one in found}
        return again


def end_of_stray(kernel_id: KernelId, reason: Reason, attempt: int) -> KernelFact:
    """Return what is told when nothing of a kernel without a record is left."""
    return KernelFact(
        kernel_id=kernel_id,
        session_id="",
        status=Status.TERMINATED,
        reason=reason.value,
        message="nothing of this kernel is on the node",
        attempt=attempt,
    )

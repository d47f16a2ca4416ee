"""Downloads: an agent prepares them, and they are read ahead by one chunk while the last one is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog

from actors.contracts import AgentContract, Route, Transfer
from backendai_ray.api.reach import Reach
from backendai_ray.core.errors import BackendError, FileMissing
from backendai_ray.core.ids import AccessKey

log = structlog.get_logger()

CHUNK_BYTES = 4 * 2**20


class Download:
    """One prepared download."""

    def __init__(self, agent: AgentContract, transfer: Transfer) -> None:
        self._agent = agent
        self._transfer = transfer

    @classmethod
    async def open(
        cls, reach: Reach, access_key: AccessKey, name: str, paths: Sequence[str], *, archive: bool
    ) -> Download:
        """Have the agent prepare a file, or a tar of several."""

        async def call(agent: AgentContract, route: Route) -> Download:
            return cls(agent, await agent.open_download(route, paths, archive=archive))

        return await reach.agent(access_key, name, call)

    @property
    def size(self) -> int:
        """The bytes that :meth:`chunks` brings."""
        return self._transfer.size

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the content, and drop the transfer at the end, however it comes."""
        offset = 0
        ahead: asyncio.Task[bytes] | None = None
        try:
            while offset < self.size:
                chunk = await (ahead or self._read(offset))
                if not chunk:
                    raise FileMissing("the download ended early")
                offset += len(chunk)
                ahead = asyncio.create_task(self._read(offset)) if offset < self.size else None
                yield chunk
        finally:
            if ahead is not None:
                ahead.cancel()
            await asyncio.shield(asyncio.create_task(self._close()))

    async def _read(self, offset: int) -> bytes:
        return await self._agent.read_download(self._transfer.id, offset, min(CHUNK_BYTES, self.size - offset))

    async def _close(self) -> None:
        try:
            await self._agent.close_download(self._transfer.id)
        except BackendError as exc:
            log.debug("download.not_closed", error=repr(exc))  # it expires by itself

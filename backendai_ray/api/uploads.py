"""Uploads: a stream of files handed on to the agent in chunks; they appear in the session together, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog

from backendai_ray.api.multipart import PartBegin, PartData, PartEnd, PartEvent
from backendai_ray.api.reach import Reach
from backendai_ray.core.errors import BackendError, BadRequest, InvalidParameter, TooLarge
from backendai_ray.core.ids import AccessKey
from backendai_ray.core.paths import parse_session_path

log = structlog.get_logger()

CHUNK_BYTES = 4 * 2**20
MAX_FILES = 1000
_ABORT_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _File:
    path: str
    sent: int = 0
    """How much the agent has."""
    waiting: bytearray = field(default_factory=bytearray)


class Upload:
    """One upload request."""

    def __init__(self, reach: Reach, access_key: AccessKey, name: str, *, max_bytes: int) -> None:
        self._reach = reach
        self._access_key = access_key
        self._name = name
        self._max_bytes = max_bytes
        self._received = 0
        self._files: dict[str, _File] = {}
        self._finished: set[str] = set()

    async def take(self, parts: AsyncIterator[PartEvent]) -> None:
        """Carry the files over; whatever goes wrong, the unfinished ones are dropped at the agent.

        Raises:
            TooLarge: they are larger than allowed, together.
            BackendError: a path is not usable, or the session cannot be reached.
        """
        try:
            await self._carry(parts)
            if not self._files:
                raise BadRequest("the upload has no files")
            for file in self._files.values():
                await self._write(file, final=True)
                self._finished.add(file.path)
        except BaseException:
            await asyncio.shield(asyncio.create_task(self._drop()))
            raise

    async def _carry(self, parts: AsyncIterator[PartEvent]) -> None:
        current: _File | None = None
        async for event in parts:
            match event:
                case PartBegin(filename):
                    if current is not None and current.waiting:
                        await self._write(current, final=False)
                    current = self._begin(filename)
                case PartData(data):
                    assert current is not None
                    self._received += len(data)
                    if self._received > self._max_bytes:
                        raise TooLarge(
                            f"an upload may have {self._max_bytes} bytes; nothing of this one was kept",
                            limit_bytes=self._max_bytes,
                        )
                    current.waiting += data
                    if len(current.waiting) >= CHUNK_BYTES:
                        await self._write(current, final=False)
                case PartEnd():
                    pass

    def _begin(self, filename: str) -> _File:
        path = str(parse_session_path(filename, field="filename"))
        if path == "." or filename.endswith("/"):
            raise InvalidParameter(f"filename: {filename[:120]!r} names a folder", field="filename")
        if path in self._files:
            raise InvalidParameter(f"filename: {path[:120]!r} is there twice", field="filename")
        if len(self._files) >= MAX_FILES:
            raise TooLarge(f"an upload may have {MAX_FILES} files", limit_files=MAX_FILES)
        self._files[path] = _File(path)
        return self._files[path]

    async def _write(self, file: _File, *, final: bool) -> None:
        data, offset = bytes(file.waiting), file.sent
        file.waiting.clear()
        await self._reach.agent(
            self._access_key,
            self._name,
            lambda agent, route: agent.write_file(route, file.path, offset, data, final=final),
        )
        file.sent += len(data)

    async def _drop(self) -> None:
        for file in self._files.values():
            if file.path in self._finished:
                continue
            try:
                async with asyncio.timeout(_ABORT_TIMEOUT_S):
                    await self._reach.agent(
                        self._access_key,
                        self._name,
                        lambda agent, route, path=file.path: agent.abort_write(route, path),  # type: ignore[misc]
                        repeat=False,
                    )
            except (BackendError, TimeoutError) as exc:
                log.warning("upload.not_dropped", path=file.path, error=repr(exc))

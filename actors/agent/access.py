"""What callers do inside kernels: run code, use terminals, move files, read logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.agent.backends.base import ComputeBackend
from actors.agent.executions import Executions, why_unreachable
from actors.agent.folders import kernel_folder, life_folder
from actors.agent.journal import Journal, KernelRecord
from actors.agent.kernel import KernelDriver
from actors.agent.offload import Offload
from actors.agent.transfers import Downloads, abort_upload, write_chunk
from actors.agent.workdir import WorkFolder, read_untrusted
from actors.contracts import ExecuteRequest, FileEntry, Route, Transfer
from backendai_ray.config import Settings
from backendai_ray.core.errors import (
    Conflict,
    ImageNotFound,
    KernelNotFound,
    KernelUnreachable,
    SessionEnded,
    StaleRoute,
)
from backendai_ray.core.execution import RunOutput
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.runtimes import Runtime

PTY_READ_BYTES = 2**16


class KernelAccess:
    """The half of the agent that only uses kernels; the other half, :class:`.agent.Agent`, makes and ends them."""

    _id: AgentId
    _settings: Settings
    _sessions_dir: Path
    _backend: ComputeBackend
    _journal: Journal
    _offload: Offload
    _kernels: dict[KernelId, KernelDriver]
    _executions: Executions
    _downloads: Downloads

    # ── running code ───────────────────────────────────────────────────────────────────────────────────────────────

    async def execute(self, request: ExecuteRequest) -> RunOutput:
        return await self._executions.execute(self._routed(request.route), request)

    async def complete(self, route: Route, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        driver = self._routed(route)
        link = await driver.ready_link()
        row, column = options.get("row"), options.get("col")
        return await link.complete(code, _cursor(code, row, column))

    async def interrupt(self, route: Route) -> None:
        link = await self._routed(route).ready_link()
        await link.interrupt()

    async def logs(self, kernel_id: KernelId) -> bytes:
        driver = self._known(kernel_id)
        return await self._offload.slow(self._read_logs, driver.record)

    def _read_logs(self, record: KernelRecord) -> bytes:
        limit = self._settings.agent.log_bytes
        if record.has_ended:
            text = self._journal.read_log(record.spec.kernel_id, limit)
        else:
            text = self._backend.log(record.life, limit)
        run_dir = life_folder(self._sessions_dir, record.life) / "run"
        for name in ("startup.log.1", "startup.log"):
            text += read_untrusted(run_dir / name, limit)
        return text[-limit:]

    def _with_log(self, fact: KernelFact) -> KernelFact:
        """In a worker thread: complete the news of an end with what the kernel printed."""
        driver = self._kernels.get(fact.kernel_id)
        if driver is None or not driver.record.has_ended:
            return fact
        return replace(fact, log_tail=self._read_logs(driver.record))

    # ── images ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def runtimes(self, image: str) -> Sequence[Runtime]:
        backend = self._backend
        if not backend.is_prepared(image) and image not in await self._offload.slow(backend.images):
            raise ImageNotFound(f"the node {self._id} does not have the image {image!r}", image=image)
        prepared = await self._offload.slow(backend.prepare_image, image, "")
        default = prepared.runtime_for("")
        return sorted(prepared.runtimes(), key=lambda runtime: runtime.name != default)

    # ── terminals ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_pty(self, route: Route, *, rows: int, cols: int, pty_id: str) -> None:
        link = await self._routed(route).ready_link()
        await link.open_pty(pty_id, rows=rows, cols=cols)

    async def read_pty(self, route: Route, pty_id: str, after_seq: int, wait_s: float) -> tuple[int, bytes, bool]:
        driver = self._routed(route)
        link = await driver.ready_link()
        try:
            output = await link.pty_read(pty_id, after=after_seq, wait_s=wait_s, max_bytes=PTY_READ_BYTES)
        except KernelUnreachable as error:
            raise await why_unreachable(driver, error) from error
        return output.offset, output.data, output.exit_code is not None

    async def write_pty(self, route: Route, pty_id: str, data: bytes) -> None:
        link = await self._routed(route).ready_link()
        await link.pty_write(pty_id, data)

    async def resize_pty(self, route: Route, pty_id: str, *, rows: int, cols: int) -> None:
        link = await self._routed(route).ready_link()
        await link.pty_resize(pty_id, rows=rows, cols=cols)

    async def close_pty(self, route: Route, pty_id: str) -> None:
        link = await self._routed(route).ready_link()
        await link.pty_close(pty_id)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_files(self, route: Route, path: str) -> Sequence[FileEntry]:
        return await self._offload.quick(self._folder(route)[1].list, path)

    async def write_file(self, route: Route, path: str, offset: int, data: bytes, *, final: bool) -> None:
        root, folder = self._folder(route)
        await self._offload.quick(write_chunk, root / "uploads", folder, path, offset, data, final=final)

    async def abort_write(self, route: Route, path: str) -> None:
        root, _ = self._folder(route)
        await self._offload.quick(abort_upload, root / "uploads", path)

    async def open_download(self, route: Route, paths: Sequence[str], *, archive: bool) -> Transfer:
        root, folder = self._folder(route)
        prepare = self._downloads.prepare
        return await self._offload.slow(prepare, route.kernel_id, folder, root / "uploads", paths, archive=archive)

    async def read_download(self, transfer_id: str, offset: int, size: int) -> bytes:
        return await self._offload.quick(self._downloads.read, transfer_id, offset, size)

    async def close_download(self, transfer_id: str) -> None:
        await self._offload.quick(self._downloads.close, transfer_id)

    def _folder(self, route: Route) -> tuple[Path, WorkFolder]:
        record = self._routed(route).record
        if record.has_ended:
            raise SessionEnded(f"the session has ended: {record.message or record.reason}")
        root = kernel_folder(self._sessions_dir, record.spec.kernel_id)
        return root, WorkFolder(root / "work", record.uid)

    # ── look-ups ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, kernel_id: KernelId) -> KernelDriver:
        driver = self._kernels.get(kernel_id)
        if driver is None:
            raise KernelNotFound(f"the node has no kernel {kernel_id}")
        return driver

    def _routed(self, route: Route) -> KernelDriver:
        driver = self._known(route.kernel_id)
        if route.agent_id != self._id or route.epoch < driver.record.route_epoch:
            raise StaleRoute("the session was renamed, restarted or moved since it was looked up; look it up again")
        if route.session_id != driver.record.spec.session_id:
            raise Conflict("the kernel belongs to another session")
        return driver


def _cursor(code: str, row: object, column: object) -> int | None:
    """Return the offset of a row and a column (both from 0), as the official client tells the cursor."""
    if not isinstance(row, int) or not isinstance(column, int):
        return None
    lines = code.split("\n")
    return sum(len(line) + 1 for line in lines[: max(0, row)]) + max(0, column)

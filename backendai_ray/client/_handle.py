"""One session: running code in it, its files, its life."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backendai_ray.client import _files
from backendai_ray.client._events import read_events
from backendai_ray.client._files import OnBytes
from backendai_ray.client._models import (
    DependencyNode,
    Event,
    Explanation,
    FileInfo,
    Proposal,
    RunResult,
    SchedulingEntry,
    SessionInfo,
    StatusChange,
)
from backendai_ray.client._runs import AsyncRun, InputSource
from backendai_ray.client._terminal import AsyncTerminal
from backendai_ray.client._usage import KernelUsage
from backendai_ray.core.errors import (
    BackendError,
    FileMissing,
    ImageNotFound,
    KernelStartFailed,
    RequestLost,
    RequestTimeout,
    SessionEnded,
    SessionNotFound,
)
from backendai_ray.core.execution import ExecMode
from backendai_ray.core.sessions import TERMINAL, Reason, SessionType, Status

if TYPE_CHECKING:
    from backendai_ray.client._transport import Transport

_LONG_POLL_S = 10.0
_SHORTEST_POLL_S = 0.02
_LONGEST_POLL_S = 0.5
_DESTROY_TIMEOUT_S = 60.0
_DOWNLOAD_ATTEMPTS = 3


class AsyncSession:
    """A handle to one session; as a context manager it ends the session with the block."""

    def __init__(self, transport: Transport, session_id: str, name: str, *, created: bool = False) -> None:
        self.id = session_id
        self.name = name
        self.created = created
        """Whether the call that made this handle made the session."""
        self._transport = transport
        self._path = f"/session/{quote(session_id, safe='')}"

    def __repr__(self) -> str:
        return f"<session {self.name} {self.id}>"

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    # ── running code ──

    async def run(self, code: str, *, input: InputSource = None, timeout: float | None = None) -> RunResult:  # noqa: A002
        """Run code and return all it printed; state stays for the next run.

        Args:
            code: Source text in the image's language.
            input: What the code reads with ``input()``: a text with its lines, or a function asked for each line.
            timeout: Seconds after which the code is interrupted.

        Raises:
            RequestTimeout: it took longer than ``timeout``.
            BadRequest: the code asks for input and there is none.
        """
        return await _finish(self.stream(code, input=input), timeout)

    def stream(self, code: str, *, input: InputSource = None) -> AsyncRun:  # noqa: A002
        """Begin to run code; iterate over what is returned for the output as it comes."""
        return self._run(ExecMode.QUERY, code, {}, input)

    async def batch(
        self,
        *,
        exec: str,  # noqa: A002 - the API's word for it
        build: str | None = None,
        clean: str | None = None,
        input: InputSource = None,  # noqa: A002
        timeout: float | None = None,
    ) -> RunResult:
        """Run shell commands in the session's folder: ``clean``, then ``build``, then ``exec``."""
        return await _finish(self.stream_batch(exec=exec, build=build, clean=clean, input=input), timeout)

    def stream_batch(
        self,
        *,
        exec: str,  # noqa: A002
        build: str | None = None,
        clean: str | None = None,
        input: InputSource = None,  # noqa: A002
    ) -> AsyncRun:
        """Begin to run shell commands; iterate over what is returned for the output as it comes."""
        return self._run(ExecMode.BATCH, "", {"clean": clean, "build": build, "buildLog": True, "exec": exec}, input)

    async def complete(self, code: str, cursor: int | None = None) -> list[str]:
        """Return what could stand at the cursor (a character offset into ``code``; default: its end)."""
        at = len(code) if cursor is None else max(0, min(cursor, len(code)))
        before, after = code[:at], code[at:]
        line_start = before.rpartition("\n")[2]
        options = {
            "row": before.count("\n"),
            "col": len(line_start),
            "line": line_start + after.partition("\n")[0],
            "post": after,
        }
        body = {"code": code, "options": options}
        answer = await self._transport.json("POST", f"{self._path}/complete", body=body)
        return list((answer.get("result") or {}).get("completions") or ())

    async def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C does; the session and its state stay."""
        await self._transport.json("POST", f"{self._path}/interrupt")

    def terminal(self, *, rows: int = 24, cols: int = 80) -> AsyncTerminal:
        """Return a terminal; open it with ``async with``."""
        path = f"/stream/session/{quote(self.id, safe='')}/pty"
        return AsyncTerminal(self._transport, path, rows=rows, cols=cols)

    # ── files ──

    async def upload(
        self, local: str | Path | Sequence[str | Path], remote: str = ".", *, on_progress: OnBytes | None = None
    ) -> list[str]:
        """Copy files and folders into the session, and return their paths there.

        Args:
            local: One path or several.
            remote: A path from the session's folder. With a ``/`` at its end (or ``.``) it is a folder that gets
                ``local`` under its own name, else the new name, as with ``cp -r``.
            on_progress: Called with ``(bytes sent, bytes in all)``.

        Raises:
            FileMissing: there is no such local file.
            PathOutsideSession: ``remote`` leads out of the session's folder.
            TooLarge: a file is larger than the server takes.
        """
        several = not isinstance(local, str | Path)
        into = remote if not several or remote.endswith("/") else f"{remote}/"
        planned = [item for path in _as_list(local) for item in _files.plan_upload(path, into)]
        total, sent = sum(item.size for item in planned), 0
        for batch in _files.in_batches(planned):
            done = _Progress(sent, total, on_progress)
            await self._transport.upload(f"{self._path}/upload", lambda b=batch, d=done: d.opened(b))  # type: ignore[misc]
            sent += sum(item.size for item in batch)
        if on_progress is not None:
            on_progress(total, total)
        return [item.target for item in planned]

    async def write(self, remote: str, data: bytes | str) -> None:
        """Make a file in the session with that content."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "content"
            path.write_bytes(data.encode() if isinstance(data, str) else data)
            await self.upload(path, remote)

    async def read(self, remote: str) -> bytes:
        """Return the content of a file in the session.

        Raises:
            FileMissing: there is none, or it is a folder.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "content"
            await self.download(remote, path)
            if not path.is_file():
                raise FileMissing(f"{remote}: this is a folder, not a file", field="remote")
            return path.read_bytes()

    async def download(
        self,
        remote: str | Sequence[str],
        local: str | Path = ".",
        *,
        on_progress: OnBytes | None = None,
    ) -> list[Path]:
        """Copy files and folders out of the session, and return the local files written.

        Args:
            remote: One path from the session's folder, or several.
            local: A folder that gets each under its own name, else (for one path) the new name.
            on_progress: Called with ``(bytes received, bytes in all or 0)``.

        Raises:
            FileMissing: there is no such file in the session.
        """
        target = Path(local)
        if not isinstance(remote, str) or str(local).endswith("/"):
            await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
        written: list[Path] = []
        for path in [remote] if isinstance(remote, str) else remote:
            written += await self._download_one(path, target, on_progress)
        return written

    async def ls(self, path: str = ".") -> list[FileInfo]:
        """List a folder of the session."""
        answer = await self._transport.json("GET", f"{self._path}/files", params={"path": path})
        listed = answer["entries"] if "entries" in answer else json.loads(answer.get("files") or "[]")
        return [FileInfo.model_validate(one) for one in listed]

    # ── looking at it ──

    async def info(self) -> SessionInfo:
        """Return where it stands."""
        return SessionInfo.model_validate(await self._transport.json("GET", self._path))

    async def stats(self) -> list[KernelUsage]:
        """Return what its running containers use, as it was last measured, the main one first."""
        answer = await self._transport.json("GET", f"{self._path}/stats")
        return [KernelUsage.model_validate(one) for one in answer.get("kernels") or ()]

    async def logs(self) -> str:
        """Return its log, also after its end."""
        answer = await self._transport.json("GET", f"{self._path}/logs")
        return str((answer.get("result") or {}).get("logs") or "")

    async def history(self) -> list[StatusChange]:
        """Return every status it has had, with the reason."""
        answer = await self._transport.json("GET", f"{self._path}/status-history")
        return [StatusChange.model_validate(one) for one in answer.get("changes") or ()]

    async def explain(self) -> Explanation:
        """Return why it waits, node by node."""
        return Explanation.model_validate(await self._transport.json("GET", f"{self._path}/explain"))

    async def consolidate(
        self, *, apply: bool = False, max_moves: int = 3, min_runtime_s: float = 0, grace_s: float | None = None
    ) -> Proposal:
        """Return the fewest moves of running sessions that let this one start, if it waits.

        Only sessions that may run again are moved: your own; an administrator's call moves anybody's.

        Args:
            apply: Carry the proposal out; else nothing is done.
            max_moves: So many sessions are moved at most, 1 to 8.
            min_runtime_s: Sessions that were placed more recently are left alone.
            grace_s: How long processes have between the notice and the kill; ``None``: as at any end of a session.

        Raises:
            InvalidParameter: a bound is out of range, or the search took too long.
        """
        body = {"apply": apply, "max_moves": max_moves, "min_runtime_s": min_runtime_s, "grace_s": grace_s}
        return Proposal.model_validate(await self._transport.json("POST", f"{self._path}/consolidate", body=body))

    async def scheduling_history(self) -> list[SchedulingEntry]:
        """Return each reason for which it waited, from when on, and placements that came to nothing; oldest first."""
        answer = await self._transport.json("GET", f"{self._path}/scheduling-history")
        return [SchedulingEntry.model_validate(entry) for entry in answer["items"]]

    async def dependency_graph(self) -> DependencyNode:
        """Return it and, nested, what it depends on."""
        return DependencyNode.model_validate(await self._transport.json("GET", f"{self._path}/dependency-graph"))

    def events(self, *, last_event_id: str = "") -> AsyncIterator[Event]:
        """Yield what happens to it, until it has ended."""
        return read_events(
            self._transport, "/events/session", {"sessionId": self.id, "scope": "*"}, last_event_id=last_event_id
        )

    # ── its life ──

    async def wait(
        self,
        *statuses: Status | str,
        timeout: float | None = None,
        on_progress: Callable[[SessionInfo], None] | None = None,
    ) -> SessionInfo:
        """Wait until it is in one of the statuses (default: until it has ended) and return it.

        Args:
            statuses: Such as ``"RUNNING"``. A session that ends while something else is waited for ends the wait.
            timeout: Seconds; ``None``: as long as it takes.
            on_progress: Called with the session whenever its status or the reason changes.

        Raises:
            RequestTimeout: it was not there in time; the session goes on.
            KernelStartFailed, ImageNotFound, SessionEnded: it ended without getting there.
        """
        wanted = {Status(s) for s in statuses} or TERMINAL
        deadline = None if timeout is None else time.monotonic() + timeout
        seen: tuple[str, str, str] | None = None
        info = await self.info()
        pause_s = _SHORTEST_POLL_S
        while True:
            if on_progress is not None and (info.status, info.reason, info.message) != seen:
                on_progress(info)
            seen = (info.status, info.reason, info.message)
            if info.status in wanted:
                return info
            if info.is_terminal:
                return _ended_instead(info, wanted)
            left_s = _LONG_POLL_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise RequestTimeout(
                    f"session {info.name} is still {info.status} after {timeout:g} s: {info.message or info.reason}",
                    session_id=self.id,
                    status=info.status,
                )
            asked_at = time.monotonic()
            previous, info = info, await self._next(info, min(left_s, _LONG_POLL_S))
            if info.status == previous.status and time.monotonic() - asked_at < pause_s:
                # The server did not hold the question until something changed: ask at a bounded rate.
                await asyncio.sleep(min(pause_s, max(left_s, 0.0)))
                pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
            else:
                pause_s = _SHORTEST_POLL_S

    async def rename(self, name: str) -> None:
        """Give it another name.

        Raises:
            NameInUse: a live session of yours has it.
        """
        await self._transport.json("POST", f"{self._path}/rename", params={"name": name})
        self.name = name

    async def restart(self) -> None:
        """Give it fresh containers; its files stay, its programs and their state do not."""
        await self._transport.json("PATCH", self._path)

    async def destroy(
        self,
        *,
        forced: bool = False,
        recursive: bool = False,
        wait: bool = True,
        timeout: float | None = _DESTROY_TIMEOUT_S,
    ) -> None:
        """End it; one that has ended already is fine.

        Args:
            forced: Kill at once, without a chance to finish.
            recursive: End the sessions that depend on it too.
            wait: Return only when everything is taken back.
            timeout: How long to wait.
        """
        params = {name: "true" for name, value in (("forced", forced), ("recursive", recursive)) if value}
        try:
            await self._transport.json("DELETE", self._path, params=params)
        except (SessionNotFound, SessionEnded):
            return
        if wait:
            await self.wait(*TERMINAL, timeout=timeout)

    async def abandon_if_created(self) -> None:
        """End it as well as can be, without waiting and without an error, if the call that gave it made it."""
        if not self.created:
            return
        try:
            await self.destroy(forced=True, wait=False)
        except BackendError:
            pass  # what went wrong before is what the caller must hear of

    # ── behind ──

    def _run(self, mode: ExecMode, code: str, options: Mapping[str, object], answer: InputSource) -> AsyncRun:
        return AsyncRun(self._transport, self._path, mode=mode, code=code, options=options, answer=answer)

    async def _next(self, present: SessionInfo, wait_s: float) -> SessionInfo:
        """Return the session when its status is another, or after a while."""
        others = ",".join(str(s) for s in Status if s != present.status)
        params = {"wait": others, "wait_s": f"{wait_s:.3f}"}
        return SessionInfo.model_validate(
            await self._transport.json(
                "GET", self._path, params=params, timeout_s=wait_s + self._transport.config.timeout_s
            )
        )

    async def _download_one(self, remote: str, local: Path, on_progress: OnBytes | None) -> list[Path]:
        for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
            with _files.download_buffer() as buffer:
                try:
                    await self._fetch(remote, buffer, on_progress)
                except RequestLost:
                    if attempt == _DOWNLOAD_ATTEMPTS:
                        raise
                    continue
                buffer.seek(0)
                return await asyncio.to_thread(_files.extract, buffer, remote, local)
        raise AssertionError("unreachable")

    async def _fetch(self, remote: str, buffer: Any, on_progress: OnBytes | None) -> None:
        headers = {"Accept": "application/x-tar, multipart/*;q=0.5"}
        body = {"files": [remote]}
        async with self._transport.stream("GET", f"{self._path}/download", body=body, headers=headers) as response:
            kind, _, parameters = response.headers.get("content-type", "").partition(";")
            total, received = int(response.headers.get("content-length", 0)), 0
            boundary = parameters.partition("boundary=")[2].split(";")[0].strip().strip('"')
            part = _files.MultipartTar(boundary, buffer) if kind.startswith("multipart/") else None
            async for piece in response.aiter_bytes():
                part.feed(piece) if part else buffer.write(piece)
                received += len(piece)
                if on_progress is not None:
                    on_progress(received, total)
            if part is not None:
                part.finish()


class _Progress:
    """Adds what one request sends to what was sent before; an attempt that failed does not count."""

    def __init__(self, before: int, total: int, report: OnBytes | None) -> None:
        self._before = before
        self._total = total
        self._report = report
        self._sent = 0

    def opened(self, batch: Sequence[_files.PlannedUpload]) -> Any:
        self._sent = 0
        return _files.opened_parts(batch, self._count)

    def _count(self, size: int) -> None:
        self._sent += size
        if self._report is not None:
            self._report(min(self._before + self._sent, self._total), self._total)


def _as_list(local: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [local] if isinstance(local, str | Path) else list(local)


async def _finish(run: AsyncRun, timeout: float | None) -> RunResult:
    try:
        return await asyncio.wait_for(run.result(), timeout)
    except TimeoutError:
        await run.interrupt()
        raise RequestTimeout(f"the code did not finish within {timeout:g} s and was interrupted") from None
    except asyncio.CancelledError:
        await asyncio.shield(run.interrupt())
        raise


def _ended_instead(info: SessionInfo, wanted: frozenset[Status] | set[Status]) -> SessionInfo:
    """Decide whether an end is an answer to what was waited for.

    Raises:
        KernelStartFailed, ImageNotFound, SessionEnded: it is not.
    """
    waits_for_end = bool(wanted & TERMINAL)
    worked = info.type == SessionType.BATCH and info.started_at is not None
    if waits_for_end or worked:
        return info
    told = {"session_id": info.id, "status": info.status, "reason": info.reason}
    sentence = f"session {info.name} ended ({info.status}): {info.message or info.reason or 'no reason given'}"
    if info.reason == Reason.IMAGE_NOT_FOUND:
        raise ImageNotFound(sentence, **told)
    if info.started_at is None:
        raise KernelStartFailed(sentence, **told)
    raise SessionEnded(sentence, **told)

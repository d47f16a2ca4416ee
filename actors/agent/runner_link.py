"""The agent's side of a kernel's runner: execute, follow, interrupt, terminals.

The runner outlives the agent: it keeps output until it is acknowledged and run ids after their end, so that a
link made anew by a restarted agent goes on where the old one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.agent.runner_wire import ANSWER_TIMEOUT_S, RunnerWire
from backendai_ray.core.errors import InternalError, InvalidParameter, KernelUnreachable
from backendai_ray.core.execution import ConsoleRecord, ExecMode, OutputType, RunOutput, RunStatus

STARTUP_RUN_ID = "startup"
DEFAULT_MAX_BYTES = 1 << 20
MAX_WAIT_S = 60.0
RUNNABLE_MODES = (ExecMode.QUERY, ExecMode.BATCH)

_KINDS = {
    "o": OutputType.STDOUT.value,
    "e": OutputType.STDERR.value,
    "m": OutputType.MEDIA.value,
    "h": OutputType.HTML.value,
    "l": OutputType.LOG.value,
}
_MERGEABLE = "oe"


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """What a runner is doing."""

    active_run: str | None
    queued_runs: tuple[str, ...]
    ended_runs: tuple[str, ...]
    """The latest ones, oldest first; more ids are remembered than are listed."""


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """Who answered the handshake."""

    protocol: int
    pid: int
    """In the kernel's own pid namespace."""
    python: str
    implementation: str
    runtime: str
    started_at: float
    """Unix time by the kernel's clock."""
    status: RunnerStatus
    is_spare: bool = False
    """It was started ahead and has not been given its session's environment yet."""


@dataclass(frozen=True, slots=True)
class PtyOutput:
    """What one read of a terminal brought."""

    data: bytes
    offset: int
    """Bytes the terminal has produced up to the end of ``data``; pass it to the next read."""
    skipped: int = 0
    """Bytes between the offset asked for and ``data`` that the replay buffer holds no more."""
    exit_code: int | None = None
    """Set when the terminal's shell has ended and all its output has been read."""


class RunnerLink:
    """A connection to one kernel's runner.

    Every call raises :class:`KernelUnreachable` when the runner is gone or does not answer in time; a call that
    failed so may have happened, and all of them may be repeated. Use it in one event loop only.
    """

    def __init__(self, socket_path: Path, *, token: str) -> None:
        self._wire = RunnerWire(socket_path, token)

    @property
    def alive(self) -> bool:
        """False as soon as the runner's end was noticed or the link was closed."""
        return self._wire.lost is None

    async def connect(self, timeout_s: float) -> RunnerInfo:
        """Wait for the runner and shake hands with it.

        A runner whose program keeps the interpreter to itself (C code that never lets go) cannot answer before that
        program does; a link that could not connect is closed, make another one to try again.
        """
        try:
            return await self._greet(timeout_s)
        except BaseException:
            self.close()
            raise

    async def _greet(self, timeout_s: float) -> RunnerInfo:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self._wire.open(deadline)
        facts, *status = await self._wire.request(b"hello", timeout_s=max(0.01, deadline - loop.time()))
        pairs = dict(line.split("=", 1) for line in facts.decode("utf-8", "replace").split("\n"))
        try:
            return RunnerInfo(
                protocol=int(pairs["protocol"]),
                pid=int(pairs["pid"]),
                python=pairs["python"],
                implementation=pairs["implementation"],
                runtime=pairs["runtime"],
                started_at=float(pairs["started_at"]),
                status=_status(status),
                is_spare=pairs.get("spare") == "1",
            )
        except (KeyError, ValueError) as error:
            raise InternalError(f"the runner's greeting cannot be understood: {error!r}") from error

    async def adopt(self, environ: Mapping[str, str]) -> None:
        """Give a spare runner its session's environment; one that has it already is left alone."""
        await self._wire.request(b"adopt", _pairs(environ))

    def close(self) -> None:
        """Disconnect; the runner goes on."""
        self._wire.close()

    # -- runs -------------------------------------------------------------------------------------------------

    async def execute(
        self, run_id: str, mode: ExecMode, code: str, options: Mapping[str, object] | None = None
    ) -> None:
        """Queue a run, or attach to it if its id is known: the same id never runs twice.

        Raises:
            KernelBusy: too many runs are waiting.
            InvalidParameter: a mode other than query and batch, or an unusable run id.
        """
        await self._wire.request(b"execute", *_execute_frames(run_id, mode, code, options or {}), b"0 0")

    async def run(
        self,
        run_id: str,
        mode: ExecMode,
        code: str,
        options: Mapping[str, object] | None = None,
        *,
        wait_s: float = 2.0,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> RunOutput:
        """Execute and poll from the first record on, in one round trip."""
        frames = _execute_frames(run_id, mode, code, options or {})
        limits = b"%d %d" % (_wait_ms(wait_s), max(1, max_bytes))
        return _run_output(
            run_id, await self._wire.request(b"execute", *frames, limits, timeout_s=wait_s + ANSWER_TIMEOUT_S)
        )

    async def poll(
        self, run_id: str, *, after_seq: int = 0, wait_s: float = 2.0, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> RunOutput:
        """Return what follows *after_seq* and let the runner forget everything up to it.

        Answers at once when there is output, an end or a wait for input, otherwise ``continued`` after *wait_s*.

        Raises:
            RunNotFound: the runner does not know this run (any more).
        """
        limits = b"%d %d %d" % (max(0, after_seq), _wait_ms(wait_s), max(1, max_bytes))
        frames = await self._wire.request(b"poll", run_id.encode(), limits, timeout_s=wait_s + ANSWER_TIMEOUT_S)
        return _run_output(run_id, frames)

    async def run_startup(self, command: str, timeout_s: float | None = None) -> None:
        """Start the session's startup command as run ``startup``; repeated calls do not start it again."""
        options = {"timeout": str(timeout_s)} if timeout_s else {}
        frames = (STARTUP_RUN_ID.encode(), b"startup", command.encode(), _pairs(options))
        await self._wire.request(b"execute", *frames, b"0 0")

    async def send_input(self, run_id: str, text: str) -> None:
        """Answer a run that is ``waiting-input`` with one line (without its end).

        Raises:
            Conflict: the run does not wait for input.
        """
        await self._wire.request(b"input", run_id.encode(), text.encode())

    async def interrupt(self, run_id: str | None = None) -> bool:
        """Interrupt *run_id*, or whatever runs; False if it does not run now."""
        (done,) = await self._wire.request(b"interrupt", *([run_id.encode()] if run_id else []))
        return done == b"1"

    async def complete(self, code: str, cursor: int | None = None) -> tuple[str, ...]:
        """Return what may stand at *cursor* (characters; the end if None) of *code*."""
        before = code if cursor is None else code[: max(0, cursor)]
        (found,) = await self._wire.request(b"complete", before.encode())
        return tuple(_lines(found))

    async def status(self, timeout_s: float = ANSWER_TIMEOUT_S) -> RunnerStatus:
        """Ask what the runner is doing."""
        return _status(await self._wire.request(b"status", timeout_s=timeout_s))

    async def shutdown(self, grace_s: float | None = None) -> None:
        """Ask the runner to end: it interrupts what runs and leaves within a few seconds.

        Args:
            grace_s: Tell commands (with SIGTERM) to end by themselves, and leave them this long instead.
        """
        # A runner that is gone before its answer came did what was asked.
        with contextlib.suppress(KernelUnreachable):
            await self._wire.request(b"shutdown", *(() if grace_s is None else (b"%.3f" % grace_s,)))

    # -- terminals --------------------------------------------------------------------------------------------

    async def open_pty(self, pty_id: str, *, rows: int = 24, cols: int = 80, command: str = "") -> None:
        """Open a terminal with a login shell (or *command*) in the working directory; opening it again is harmless.

        Raises:
            KernelBusy: as many terminals as allowed are open.
        """
        await self._wire.request(b"pty", b"open", pty_id.encode(), b"%d %d" % (rows, cols), command.encode())

    async def pty_write(self, pty_id: str, data: bytes) -> None:
        """Type into the terminal.

        Raises:
            RunNotFound: there is no such terminal.
        """
        await self._wire.request(b"pty", b"write", pty_id.encode(), data)

    async def pty_resize(self, pty_id: str, *, rows: int, cols: int) -> None:
        """Tell the terminal its size in characters."""
        await self._wire.request(b"pty", b"resize", pty_id.encode(), b"%d %d" % (rows, cols))

    async def pty_read(
        self, pty_id: str, *, after: int = 0, wait_s: float = 2.0, max_bytes: int = 1 << 16
    ) -> PtyOutput:
        """Return what the terminal wrote after offset *after*, waiting up to *wait_s* for it."""
        limits = b"%d %d %d" % (max(0, after), _wait_ms(wait_s), max(1, max_bytes))
        meta, data = await self._wire.request(
            b"pty", b"read", pty_id.encode(), limits, timeout_s=wait_s + ANSWER_TIMEOUT_S
        )
        offset, skipped, exit_code = meta.split(b" ")
        return PtyOutput(data, int(offset), int(skipped), None if exit_code == b"-" else int(exit_code))

    async def pty_close(self, pty_id: str) -> None:
        """Close the terminal and end its processes; an unknown one counts as closed."""
        await self._wire.request(b"pty", b"close", pty_id.encode())


def _execute_frames(
    run_id: str, mode: ExecMode, code: str, options: Mapping[str, object]
) -> tuple[bytes, bytes, bytes, bytes]:
    if mode not in RUNNABLE_MODES:
        raise InvalidParameter(f"mode: {str(mode)!r} cannot be run; use query or batch", field="mode")
    if not run_id or "\n" in run_id:
        raise InvalidParameter("run_id: must be one line and not empty", field="run_id")
    return run_id.encode(), str(mode).encode(), code.encode("utf-8", "surrogatepass"), _pairs(options)


def _pairs(options: Mapping[str, object]) -> bytes:
    """Options as NUL-separated ``name=value``; what is None or False is left out."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name, value in given.items():
        if "\0" in name or "=" in name or "\0" in str(value):
            raise InvalidParameter(f"options: {name!r} may not contain a NUL", field="options")
    return "\0".join(f"{name}={value}" for name, value in given.items()).encode()


def _wait_ms(wait_s: float) -> int:
    return int(min(max(wait_s, 0.0), MAX_WAIT_S) * 1000)


def _status(frames: list[bytes]) -> RunnerStatus:
    active, queued, ended = frames
    return RunnerStatus(active.decode() or None, tuple(_lines(queued)), tuple(_lines(ended)))


def _lines(frame: bytes) -> list[str]:
    return frame.decode("utf-8", "replace").split("\n") if frame else []


def _run_output(run_id: str, frames: list[bytes]) -> RunOutput:
    try:
        status_name, exit_code, seq, password, kinds = frames[0].decode().split(" ")
        status = RunStatus(status_name)
        return RunOutput(
            run_id=run_id,
            status=status,
            console=_console(kinds, frames[1:]),
            seq=int(seq),
            exit_code=None if exit_code == "-" else int(exit_code),
            options={"is_password": password == "1"} if status is RunStatus.WAITING_INPUT else {},
        )
    except (ValueError, IndexError) as error:
        raise InternalError(f"the runner's answer cannot be understood: {error}") from error


def _console(kinds: str, chunks: list[bytes]) -> tuple[ConsoleRecord, ...]:
    """Turn chunks into records, joining neighbours of one type."""
    records: list[ConsoleRecord] = []
    start = 0
    while start < len(chunks):
        kind = kinds[start]
        end = start + 1
        while kind in _MERGEABLE and end < len(chunks) and kinds[end] == kind:
            end += 1
        text = (chunks[start] if end == start + 1 else b"".join(chunks[start:end])).decode("utf-8", "replace")
        if kind == "m":
            mime, _, content = text.partition("\n")
            records.append((_KINDS[kind], (mime, content)))
        elif kind in _KINDS:
            records.append((_KINDS[kind], text))
        start = end
    return tuple(records)

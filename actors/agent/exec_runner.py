"""Stands in for the runner in images without Python: code is run by the image's shell through the engine's exec.

It has the runner's interface as far as a shell can: each run is a shell of its own, so no state is kept between
runs, and a run whose agent dies is lost from sight (its startup command is not: that one writes to files).
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from codecs import getincrementaldecoder
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.agent.backends.base import ComputeBackend, ExecProcess, Life, SupportsExec
from actors.agent.backends.environ import RUN_DIR
from actors.agent.offload import Offload
from actors.agent.runner_link import PtyOutput, RunnerInfo, RunnerStatus
from actors.agent.workdir import read_untrusted
from backendai_ray.core.errors import Conflict, KernelBusy, KernelUnreachable, RunNotFound, UnsupportedByImage
from backendai_ray.core.execution import ConsoleRecord, ExecMode, OutputType, RunOutput, RunStatus

SHELL = "/bin/sh"
MAX_RUNS = 64
MAX_ACTIVE = 8
MAX_KEPT_BYTES = 4 * 2**20
MAX_TERMINAL_BYTES = 2**20
_POLL_S = 0.05

# $1: the run's pid file, $2: the code. The shell keeps its pid when it becomes the code's.
_RUN = 'echo $$ >"$1"; exec /bin/sh -c "$2"'
_STARTUP = """
cd "$1" && [ ! -e startup.pid ] || exit 0
echo $$ >startup.pid
cd /home/work
/bin/sh -c "$2" >>"$1/startup.log" 2>&1 </dev/null &
pid=$!
guard=
if [ -n "$3" ]; then
  ( sleep "$3"; : >"$1/startup.overdue"; kill -TERM $pid; sleep 5; kill -KILL $pid ) >/dev/null 2>&1 &
  guard=$!
fi
wait $pid
code=$?
status=finished
[ -e "$1/startup.overdue" ] && status=exec-timeout code=124
[ -n "$guard" ] && kill $guard 2>/dev/null
echo "{\\"run_id\\": \\"startup\\", \\"status\\": \\"$status\\", \\"exit_code\\": $code}" >"$1/result.json.new"
mv "$1/result.json.new" "$1/result.json"
"""


class ExecRunner:
    """See :class:`actors.agent.links.KernelLink`."""

    def __init__(self, backend: ComputeBackend, life: Life, offload: Offload, run_dir: Path) -> None:
        self._backend = backend
        self._life = life
        self._offload = offload
        self._run_dir = run_dir
        self._runs: OrderedDict[str, _ShellRun] = OrderedDict()
        self._terminals: dict[str, _Terminal] = {}
        self._closed = False

    @property
    def alive(self) -> bool:
        return not self._closed

    async def connect(self, timeout_s: float) -> RunnerInfo:
        """There is nobody to shake hands with; see that the container runs."""
        if not await self._offload.quick(self._backend.is_running, self._life):
            raise KernelUnreachable("the container does not run")
        return RunnerInfo(0, 0, "", "", "shell", 0.0, RunnerStatus(None, (), ()))

    async def adopt(self, environ: Mapping[str, str]) -> None:
        """A container without a runner is never started ahead."""

    def close(self) -> None:
        self._closed = True
        for reader in (*self._runs.values(), *self._terminals.values()):
            reader.hang_up()

    async def shutdown(self, grace_s: float | None = None) -> None:
        """The container is stopped by its engine; nothing is to be told to it."""

    async def status(self, timeout_s: float = 10.0) -> RunnerStatus:
        active = next((run_id for run_id, run in self._runs.items() if not run.has_ended), None)
        return RunnerStatus(active, (), tuple(run_id for run_id, run in self._runs.items() if run.has_ended))

    # ── runs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(
        self,
        run_id: str,
        mode: ExecMode,
        code: str,
        options: Mapping[str, object] | None = None,
        *,
        wait_s: float = 2.0,
        max_bytes: int = 2**20,
    ) -> RunOutput:
        if run_id not in self._runs:
            if sum(not run.has_ended for run in self._runs.values()) >= MAX_ACTIVE:
                raise KernelBusy("too many commands run in the session; wait for one to end")
            run = self._runs[run_id] = _ShellRun(asyncio.get_running_loop())
            while len(self._runs) > MAX_RUNS and next(iter(self._runs.values())).has_ended:
                self._runs.popitem(last=False)
            script = code if mode is ExecMode.QUERY else _batch_script(options or {}, code)
            pid_file = f"{RUN_DIR}/{_file_name(run_id)}.pid"
            try:
                run.attach(await self._exec([SHELL, "-c", _RUN, "sh", pid_file, script]))
            except BaseException:
                del self._runs[run_id]
                raise
        return await self.poll(run_id, wait_s=wait_s, max_bytes=max_bytes)

    async def poll(self, run_id: str, *, after_seq: int = 0, wait_s: float = 2.0, max_bytes: int = 2**20) -> RunOutput:
        if run_id == "startup":
            return await self._poll_startup(wait_s)
        run = self._runs.get(run_id)
        if run is None:
            raise RunNotFound(f"the session knows no run {run_id!r}")
        run.forget(after_seq)
        await run.wait_for_news(after_seq, wait_s)
        records, seq, is_complete = run.take(after_seq, max_bytes)
        is_over = is_complete and run.has_ended
        return RunOutput(
            run_id=run_id,
            status=RunStatus.FINISHED if is_over else RunStatus.CONTINUED,
            console=records,
            seq=seq,
            exit_code=run.exit_code if is_over else None,
        )

    async def send_input(self, run_id: str, text: str) -> None:
        run = self._runs.get(run_id)
        if run is None or run.has_ended or run.process is None:
            raise Conflict("the run does not wait for input")
        await self._offload.quick(run.process.write, (text + "\n").encode())

    async def interrupt(self, run_id: str | None = None) -> bool:
        active = [key for key, run in self._runs.items() if not run.has_ended and run_id in (None, key)]
        for key in active:
            pid = read_untrusted(self._run_dir / f"{_file_name(key)}.pid", 16).strip()
            if pid.isdigit():
                command = f"kill -{signal.SIGINT.value} -{pid.decode()} || kill -{signal.SIGINT.value} {pid.decode()}"
                process = await self._exec([SHELL, "-c", command])
                await self._offload.slow(_drain, process)
        return bool(active)

    async def complete(self, code: str, cursor: int | None = None) -> tuple[str, ...]:
        return ()

    # ── the startup command ────────────────────────────────────────────────────────────────────────────────────────

    async def run_startup(self, command: str, timeout_s: float | None = None) -> None:
        limit = f"{timeout_s:g}" if timeout_s else ""
        process = await self._exec([SHELL, "-c", _STARTUP, "sh", RUN_DIR, command, limit])
        # It talks to files alone, so nobody needs to listen; hanging up early could end it with some engines.
        threading.Thread(target=_drain, args=(process,), name="startup-exec", daemon=True).start()

    async def _poll_startup(self, wait_s: float) -> RunOutput:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            try:
                text = await self._offload.quick(read_untrusted, self._run_dir / "result.json", 4096)
                said = json.loads(text)
                return RunOutput(run_id="startup", status=RunStatus(said["status"]), exit_code=int(said["exit_code"]))
            except (ValueError, KeyError, TypeError):
                pass  # not there yet
            if self._closed:
                raise KernelUnreachable("the kernel has ended")
            if loop.time() >= deadline:
                return RunOutput(run_id="startup", status=RunStatus.CONTINUED)
            await asyncio.sleep(_POLL_S)

    # ── terminals ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_pty(self, pty_id: str, *, rows: int = 24, cols: int = 80, command: str = "") -> None:
        if pty_id in self._terminals:
            return
        if len(self._terminals) >= MAX_ACTIVE:
            raise KernelBusy("too many terminals are open in the session")
        argv = [SHELL, "-c", command] if command else [SHELL]
        terminal = self._terminals[pty_id] = _Terminal(asyncio.get_running_loop())
        try:
            terminal.attach(await self._exec(argv, tty=True, rows=rows, cols=cols))
        except BaseException:
            del self._terminals[pty_id]
            raise

    async def pty_write(self, pty_id: str, data: bytes) -> None:
        await self._offload.quick(self._terminal(pty_id).require().write, data)

    async def pty_resize(self, pty_id: str, *, rows: int, cols: int) -> None:
        await self._offload.quick(self._terminal(pty_id).require().resize, rows, cols)

    async def pty_read(self, pty_id: str, *, after: int = 0, wait_s: float = 2.0, max_bytes: int = 2**16) -> PtyOutput:
        terminal = self._terminal(pty_id)
        await terminal.wait_for_bytes(after, wait_s)
        return terminal.take(after, max_bytes)

    async def pty_close(self, pty_id: str) -> None:
        terminal = self._terminals.pop(pty_id, None)
        if terminal is not None:
            terminal.hang_up()

    def _terminal(self, pty_id: str) -> _Terminal:
        if pty_id not in self._terminals:
            raise RunNotFound(f"there is no terminal {pty_id!r}")
        return self._terminals[pty_id]

    async def _exec(self, argv: Sequence[str], *, tty: bool = False, rows: int = 24, cols: int = 80) -> ExecProcess:
        backend = self._backend
        if not isinstance(backend, SupportsExec):
            raise UnsupportedByImage(
                "the session's image has no Python 3, and this node cannot run code in it otherwise"
            )
        return await self._offload.slow(backend.exec, self._life, argv, tty=tty, rows=rows, cols=cols)


class _Reader:
    """Reads a process in a thread of its own and wakes up who waits, in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news = asyncio.Event()
        self.process: ExecProcess | None = None
        self.has_ended = False
        self.exit_code: int | None = None

    def attach(self, process: ExecProcess) -> None:
        self.process = process
        threading.Thread(target=self._read, args=(process,), name="exec-reader", daemon=True).start()

    def require(self) -> ExecProcess:
        if self.process is None or self.has_ended:
            raise Conflict("it has ended")
        return self.process

    def hang_up(self) -> None:
        if self.process is not None:
            self.process.close()

    def _read(self, process: ExecProcess) -> None:
        while (piece := process.read()) is not None:
            self._post(self._take_in, *piece)
        self._post(self._end, process.exit_code())

    def _post(self, function: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]
        except RuntimeError:
            pass  # the agent has left

    def _take_in(self, stream: str, data: bytes) -> None:
        raise NotImplementedError

    def _end(self, exit_code: int) -> None:
        self.exit_code, self.has_ended = exit_code, True
        self._news.set()

    async def _wait(self, wait_s: float) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            pass  # nothing new


class _ShellRun(_Reader):
    """Output as numbered pieces, kept until it is acknowledged; a flood loses its middle, with a mark."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._pieces: list[tuple[int, str, str]] = []
        self._seq = 0
        self._size = 0
        self._lost = 0
        self._decoders = {name: getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def _take_in(self, stream: str, data: bytes) -> None:
        if self._size > MAX_KEPT_BYTES:
            self._lost += len(data)
        else:
            self._append(stream, self._decoders[stream].decode(data))
        self._news.set()

    def _end(self, exit_code: int) -> None:
        for stream, decoder in self._decoders.items():
            self._append(stream, decoder.decode(b"", True))
        if self._lost:
            self._append("stderr", f"\n[{self._lost} bytes of output were cut here]\n")
        super()._end(exit_code)

    def _append(self, stream: str, text: str) -> None:
        if text:
            self._seq += 1
            self._size += len(text)
            self._pieces.append((self._seq, stream, text))

    def forget(self, upto: int) -> None:
        while self._pieces and self._pieces[0][0] <= upto:
            self._size -= len(self._pieces.pop(0)[2])
        if self._lost and self._size < MAX_KEPT_BYTES // 2:
            self._append("stderr", f"\n[{self._lost} bytes of output were cut here]\n")
            self._lost = 0

    async def wait_for_news(self, after_seq: int, wait_s: float) -> None:
        if self._seq <= after_seq and not self.has_ended:
            await self._wait(wait_s)

    def take(self, after_seq: int, max_bytes: int) -> tuple[tuple[ConsoleRecord, ...], int, bool]:
        """Returns records, the last number, and whether that is all there is."""
        taken: list[ConsoleRecord] = []
        seq, size = after_seq, 0
        for number, stream, text in self._pieces:
            if number <= after_seq:
                continue
            if size and size + len(text) > max_bytes:
                return tuple(taken), seq, False
            taken.append((OutputType(stream).value, text))
            seq, size = number, size + len(text)
        return tuple(taken), max(seq, after_seq), True


class _Terminal(_Reader):
    """The end of what a terminal wrote, by offset."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._data = b""
        self._start = 0

    def _take_in(self, stream: str, data: bytes) -> None:
        self._data += data
        surplus = len(self._data) - MAX_TERMINAL_BYTES
        if surplus > 0:
            self._data, self._start = self._data[surplus:], self._start + surplus
        self._news.set()

    async def wait_for_bytes(self, after: int, wait_s: float) -> None:
        if self._start + len(self._data) <= after and not self.has_ended:
            await self._wait(wait_s)

    def take(self, after: int, max_bytes: int) -> PtyOutput:
        begin = max(after, self._start)
        data = self._data[begin - self._start :][:max_bytes]
        is_all = begin + len(data) == self._start + len(self._data)
        exit_code = self.exit_code if self.has_ended and is_all else None
        return PtyOutput(data, begin + len(data), begin - after, exit_code)


def _drain(process: ExecProcess) -> None:
    while process.read() is not None:
        pass
    process.close()


def _file_name(run_id: str) -> str:
    return "run-" + "".join(c if c.isalnum() or c in "-_" else "_" for c in run_id)


def _batch_script(options: Mapping[str, object], code: str) -> str:
    """Return build and exec commands as one script that stops at the first failure."""
    steps = [str(options.get(name) or "") for name in ("clean", "build", "exec")]
    # "*" asks for a language's usual build, which a shell does not have.
    chosen = [step for step in steps if step and step != "*"] or [code]
    return "\n".join(["set -e", *chosen])

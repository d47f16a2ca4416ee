"""Real runners in real processes, and the link to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors.agent.runner_link import RunnerInfo, RunnerLink
from backendai_ray.core.execution import ExecMode, RunOutput, RunStatus
from backendai_ray.kernel.bundle import pyzmq_for, runner_bundle

TOKEN = "a-token-of-this-test"
PATIENCE_S = 40.0
MARK = "KERNEL_OF_THIS_TEST"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bundles and fetched pyzmqs are kept for this test run."""
    return tmp_path_factory.mktemp("runner-cache")


@dataclass
class Kernel:
    """One runner process with its folders, and how to talk to it."""

    folder: Path
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    links: list[RunnerLink] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "runner.sock"

    @property
    def workdir(self) -> Path:
        return self.folder / "work"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=self.workdir, env=self.environment, start_new_session=True)

    async def link(self, token: str = TOKEN) -> RunnerLink:
        link, _ = await self.greet(token)
        return link

    async def greet(self, token: str = TOKEN) -> tuple[RunnerLink, RunnerInfo]:
        link = RunnerLink(self.socket, token=token)
        self.links.append(link)
        return link, await link.connect(PATIENCE_S)

    def end(self) -> None:
        for link in self.links:
            link.close()
        if self.process is not None:
            with suppress(ProcessLookupError):  # what the runner started may outlive it
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_S)
        for path in Path("/proc").glob("[0-9]*/environ"):
            # A command that a run had started is in a session of its own; in a container it would end with it.
            with suppress(OSError):
                if f"{MARK}={self.folder}".encode() in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


KernelFactory = Callable[..., Kernel]


@pytest.fixture
async def start_kernel(cache_dir: Path) -> AsyncIterator[KernelFactory]:
    """Start a runner: ``start_kernel(runtime="shell", python=..., buffer_bytes=...)``."""
    kernels: list[Kernel] = []

    def start(*, runtime: str = "python", python: str = "", buffer_bytes: int = 16 << 20, **env: str) -> Kernel:
        folder = Path(tempfile.mkdtemp(prefix="kernel-"))
        (folder / "run").mkdir(mode=0o700)
        (folder / "work").mkdir()
        interpreter, version = (python, version_of(python)) if python else (sys.executable, version_of(sys.executable))
        command = [interpreter, "-u", str(runner_bundle(cache_dir) / "main.py")]
        command += ["--socket", str(folder / "run" / "runner.sock"), "--workdir", str(folder / "work")]
        command += ["--lib", str(pyzmq_for(cache_dir, version, "glibc", os.uname().machine)), "--runtime", runtime]
        command += ["--buffer-bytes", str(buffer_bytes)]
        kernel = Kernel(folder, command, {**os.environ, "BAI_RUNNER_TOKEN": TOKEN, MARK: str(folder), **env})
        kernels.append(kernel)
        kernel.start()
        return kernel

    yield start
    for kernel in kernels:
        kernel.end()


@pytest.fixture
def kernel(start_kernel: KernelFactory) -> Kernel:
    return start_kernel()


@pytest.fixture
async def link(kernel: Kernel) -> RunnerLink:
    return await kernel.link()


def version_of(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def other_interpreters() -> Iterator[str]:
    """Every other CPython from 3.7 on that this machine happens to have, one of a version."""
    seen = {f"{sys.version_info[0]}.{sys.version_info[1]}"}
    on_path = [shutil.which(f"python3.{minor}") for minor in range(7, 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in [path for path in on_path if path] + sorted(map(str, pyenv.glob("versions/3.*/bin/python3"))):
        code = "import sys; assert sys.version_info >= (3, 7); print('%d.%d' % sys.version_info[:2])"
        found = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() not in seen:
            seen.add(found.stdout.strip())
            yield path


@dataclass
class Story:
    """All that a run has told, from its beginning to its end."""

    outputs: list[RunOutput]

    @property
    def end(self) -> RunOutput:
        return self.outputs[-1]

    @property
    def exit_code(self) -> int | None:
        return self.end.exit_code

    @property
    def records(self) -> list[tuple[str, str | tuple[str, str]]]:
        """The console with neighbours of one type joined, as a reader sees it."""
        joined: list[tuple[str, str | tuple[str, str]]] = []
        for output in self.outputs:
            for kind, data in output.console:
                if joined and joined[-1][0] == kind and isinstance(data, str) and kind in ("stdout", "stderr"):
                    joined[-1] = (kind, str(joined[-1][1]) + data)
                else:
                    joined.append((kind, data))
        return joined

    def text(self, kind: str = "stdout") -> str:
        return "".join(str(data) for type_, data in self.records if type_ == kind)


_counter = iter(range(1_000_000_000))


async def run(
    link: RunnerLink,
    code: str,
    mode: ExecMode = ExecMode.QUERY,
    run_id: str = "",
    answers: tuple[str, ...] = (),
    **options: object,
) -> Story:
    """Execute and follow to the end, answering what is asked."""
    run_id = run_id or f"run-{next(_counter)}"
    waiting = list(answers)
    outputs = [await link.run(run_id, mode, code, options)]
    return await follow(link, outputs, waiting)


async def follow(link: RunnerLink, outputs: list[RunOutput], answers: list[str] | None = None) -> Story:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while outputs[-1].status not in (RunStatus.FINISHED, RunStatus.EXEC_TIMEOUT):
        assert asyncio.get_running_loop().time() < deadline, f"no end in time; last: {outputs[-1]}"
        last = outputs[-1]
        if last.status is RunStatus.WAITING_INPUT:
            assert answers, "the run waits for input that the test does not give"
            await link.send_input(last.run_id, answers.pop(0))
        outputs.append(await link.poll(last.run_id, after_seq=last.seq))
    return Story(outputs)


async def attach(link: RunnerLink, run_id: str, after_seq: int = 0) -> Story:
    return await follow(link, [await link.poll(run_id, after_seq=after_seq)])


async def until_output(link: RunnerLink, run_id: str, text: str) -> RunOutput:
    """Poll a run, without acknowledging, until its output holds *text*."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        output = await link.poll(run_id, after_seq=0, wait_s=1.0)
        if any(text in str(data) for _, data in output.console):
            return output
        assert asyncio.get_running_loop().time() < deadline, f"{text!r} has not come: {output}"

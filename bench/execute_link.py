"""A runner process and the agent's link to it without the rest of the system, driven from blocking code."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.execution import ExecMode, RunStatus
from backendai_ray.kernel.bundle import pyzmq_for, runner_bundle

_TOKEN = "bench"
_START_TIMEOUT_S = 60.0


class LinkKernel:
    """One runner in a plain process; :meth:`run` takes the way of an agent, link and all."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        libc = "glibc" if platform.libc_ver()[0] == "glibc" else "musl"
        self._main = runner_bundle(self._folder / "cache") / "main.py"
        self._lib = pyzmq_for(self._folder / "cache", version, libc, platform.machine())
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> LinkKernel:
        self.start_s = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.close()
        for path in self._folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> float:
        """Start the runner; return the seconds from its ``exec`` to the end of the handshake."""
        socket = self._folder / f"{next(self._numbers)}.sock"
        command = [self._python, "-u", str(self._main), "--socket", str(socket), "--lib", str(self._lib)]
        began = time.perf_counter()
        self._process = subprocess.Popen(command, cwd=self._folder, env={**os.environ, "BAI_RUNNER_TOKEN": _TOKEN})
        self._link = RunnerLink(socket, token=_TOKEN)
        self._loop.run_until_complete(self._link.connect(_START_TIMEOUT_S))
        return time.perf_counter() - began

    def stop(self) -> None:
        """End the runner."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def run(self, code: str) -> int:
        """Execute a cell to its end; return the characters of output that arrived."""
        return self._loop.run_until_complete(self._run(code))

    async def _run(self, code: str) -> int:
        run_id = f"run-{next(self._numbers)}"
        received = 0
        output = await self._link.run(run_id, ExecMode.QUERY, code)
        while True:
            received += sum(len(data) for _, data in output.console)
            if output.status is RunStatus.FINISHED:
                return received
            output = await self._link.poll(run_id, after_seq=output.seq)

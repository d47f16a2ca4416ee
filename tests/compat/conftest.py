"""The official client, in a virtual environment of its own, against a front door.

Every test runs twice: against a front door over fakes, and against a running cluster. The client is installed from the
package registry once per machine; where it cannot be, the tests are skipped and the summary says so. To use one that is
installed already: ``BAI_OFFICIAL_CLIENT=/path/to/venv``.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from actors.front_door import FrontDoor
from backendai_ray.config import load_settings
from tests.support.api_fakes import ADMIN, FakeCluster
from tests.support.requirements import missing

PINS = ("backend-ai-client==23.9.10", "yarl==1.9.4")
_COMMAND_TIMEOUT_S = 90


@pytest.fixture(scope="session")
def official_venv() -> Path:
    """Return the virtual environment that has the official client."""
    given = os.environ.get("BAI_OFFICIAL_CLIENT")
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = cache / "backendai-ray" / "official-client-23.9.10"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *PINS]
        result = subprocess.run(install, capture_output=True, text=True, timeout=280, check=False)
        if result.returncode:
            missing(f"the official client cannot be installed: {result.stderr.strip().splitlines()[-1][:200]}")
        done.touch()
    return folder


class FakeServer:
    """A front door over fakes, served from a thread."""

    def __init__(self, folder: Path) -> None:
        (folder / "work").mkdir()
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._door, self.url = self._wait_for(self._start())

    async def _start(self) -> tuple[FrontDoor, str]:
        services = FakeCluster(self._folder / "work").services()
        door = FrontDoor(
            load_settings(data_dir=self._folder),
            port=0,
            bus_url="",
            manager=services.manager,
            connect_agent=services.agent,
            sokovan=services.sokovan,
            events=services.events,
        )
        await door.start()
        return door, await door.address()

    def stop(self) -> None:
        self._wait_for(self._door.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _wait_for(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


@pytest.fixture(scope="session")
def fake_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What ``bai env`` would export for the front door over fakes."""
    server = FakeServer(tmp_path_factory.mktemp("fakes"))
    yield {
        "BACKEND_ENDPOINT": server.url,
        "BACKEND_ENDPOINT_TYPE": "api",
        "BACKEND_ACCESS_KEY": ADMIN.access_key,
        "BACKEND_SECRET_KEY": ADMIN.secret_key,
        "BACKEND_DOMAIN": "default",
        "BACKEND_GROUP": "default",
    }
    server.stop()


@dataclass
class Official:
    """The official client, pointed at a server."""

    venv: Path
    environment: Mapping[str, str]
    home: Path

    def popen(self, *arguments: str, **changed: str) -> subprocess.Popen[str]:
        """Start a command of the CLI."""
        return subprocess.Popen(
            [str(self.venv / "bin" / "backend.ai"), *arguments],
            env=self._env(changed),
            cwd=self.home,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def fail(self, *arguments: str, **changed: str) -> str:
        """Run a command that must fail, and return what it printed."""
        process = self.popen(*arguments, **changed)
        output, _ = process.communicate(timeout=_COMMAND_TIMEOUT_S)
        assert process.returncode, output
        return output

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run a command of the CLI and return what it printed."""
        process = self.popen(*arguments)
        output, _ = process.communicate(stdin, timeout=_COMMAND_TIMEOUT_S)
        assert process.returncode == 0, output
        return output

    def python(self, code: str) -> str:
        """Run Python code in the client's environment and return what it printed."""
        process = subprocess.run(
            [str(self.venv / "bin" / "python"), "-c", code],
            env=self._env({}),
            cwd=self.home,
            text=True,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def _env(self, changed: Mapping[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**kept, "HOME": str(self.home), "PYTHONIOENCODING": "utf-8", **self.environment, **changed}


@pytest.fixture(params=["fakes", pytest.param("cluster", marks=pytest.mark.ray)])
def official(request: pytest.FixtureRequest, official_venv: Path, tmp_path: Path) -> Official:
    """The official client, pointed at fakes and at a running cluster."""
    name = "fake_endpoint" if request.param == "fakes" else "live_endpoint"
    return Official(official_venv, request.getfixturevalue(name), tmp_path)


@pytest.fixture
def session(official: Official) -> Iterator[str]:
    """The name of a running session, made by the official client."""
    name = f"compat-{token_hex(4)}"
    official("start", "python", "-t", name)
    yield name
    process = official.popen("rm", name)
    process.communicate(timeout=_COMMAND_TIMEOUT_S)


@pytest.fixture(autouse=True, scope="session")
def supported_python() -> None:
    """The official client needs Python 3.11 exactly."""
    if sys.version_info[:2] != (3, 11) and not os.environ.get("BAI_OFFICIAL_CLIENT"):
        missing("the official client 23.9 needs Python 3.11")

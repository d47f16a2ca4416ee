"""The official client, in a virtual environment of its own, against a front door.

``BAI_COMPAT`` says against which servers: ``fakes``, ``cluster``, or ``fakes,cluster`` (default). The client is
installed from the package registry once per machine; ``BAI_OFFICIAL_CLIENT=/path/to/venv`` names one that is there.
"""

from __future__ import annotations

import asyncio
import json
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
from tests.support.waiting import wait_until

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


@pytest.fixture(scope="session")
def fork_server(official_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the official client."""
    process = subprocess.Popen(
        [str(official_venv / "bin" / "python"), str(Path(__file__).with_name("fork_server.py"))],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home")), "PYTHONIOENCODING": "utf-8"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    yield process
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@dataclass
class Command:
    """A command of the official client that was started."""

    output: Path
    status: Path

    def finish(self) -> tuple[int, str]:
        """Wait for its end and return its exit status and what it printed."""
        wait_until(self.status.exists, timeout_s=_COMMAND_TIMEOUT_S, story=self.printed)
        return int(self.status.read_text()), self.printed()

    def printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


@dataclass
class Official:
    """The official client, pointed at a server."""

    server: subprocess.Popen[str]
    environment: Mapping[str, str]
    home: Path

    def start(self, *argv: str, stdin: str = "", code: str | None = None, **changed: str) -> Command:
        """Start a command of the CLI, or Python code in the client's environment."""
        place = self.home / ".commands" / token_hex(4)
        place.mkdir(parents=True)
        (place / "stdin").write_text(stdin)
        command = Command(place / "output", place / "status")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        order = {
            "env": {**kept, "HOME": str(self.home), **self.environment, **changed},
            "cwd": str(self.home),
            "stdin": str(place / "stdin"),
            "output": str(command.output),
            "status": str(command.status),
            **({"argv": argv} if code is None else {"code": code}),
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return command

    def __call__(self, *argv: str, stdin: str = "") -> str:
        """Run a command of the CLI and return what it printed."""
        status, output = self.start(*argv, stdin=stdin).finish()
        assert status == 0, output
        return output

    def fail(self, *argv: str, **changed: str) -> str:
        """Run a command that must fail, and return what it printed."""
        status, output = self.start(*argv, **changed).finish()
        assert status, output
        return output

    def python(self, code: str) -> str:
        """Run Python code in the client's environment and return what it printed."""
        status, output = self.start(code=code).finish()
        assert status == 0, output
        return output


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server_name" in metafunc.fixturenames:
        names = os.environ.get("BAI_COMPAT", "fakes,cluster").split(",")
        marks = {"cluster": pytest.mark.ray}
        parameters = [pytest.param(name, marks=marks[name]) if name in marks else name for name in names]
        metafunc.parametrize("server_name", parameters)


@pytest.fixture
def official(
    server_name: str, request: pytest.FixtureRequest, fork_server: subprocess.Popen[str], tmp_path: Path
) -> Official:
    """The official client, pointed at fakes (``fakes``) or at a running cluster (``cluster``)."""
    endpoint = "fake_endpoint" if server_name == "fakes" else "live_endpoint"
    return Official(fork_server, request.getfixturevalue(endpoint), tmp_path)


@pytest.fixture
def session(official: Official) -> Iterator[str]:
    """The name of a running session, made by the official client."""
    name = f"compat-{token_hex(4)}"
    official("start", "python", "-t", name)
    yield name
    official.start("rm", name).finish()


@pytest.fixture(autouse=True, scope="session")
def supported_python() -> None:
    """The official client needs Python 3.11 exactly."""
    if sys.version_info[:2] != (3, 11) and not os.environ.get("BAI_OFFICIAL_CLIENT"):
        missing("the official client 23.9 needs Python 3.11")

"""A cluster on one machine: a daemon that holds Ray, the embedded event bus and the actors, and a handle to it.

The daemon is the parent of everything it starts, so that ending it (even by ``kill -9``) ends Ray with it. What
belongs to users, their containers and processes, is not its child: sessions outlive a crash of the daemon and are
found again by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import SecretStr

from backendai_ray.config import Settings
from backendai_ray.core.errors import BackendError, Conflict, InternalError, NotFound, RequestTimeout

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 90.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the daemon says of itself in its state file, once everything answers."""

    pid: int
    started: float
    """The daemon's start time in clock ticks since boot: with the pid, it names the process for good."""
    endpoint: str
    access_key: str
    secret_key: str
    ray_address: str
    namespace: str
    data_dir: str


def state_file(data_dir: Path) -> Path:
    """Return where the daemon of that data folder describes itself (mode 0600: it holds the secret key)."""
    return data_dir / "run" / "cluster.json"


def process_start_ticks(pid: int) -> float | None:
    """Return when a process started, in clock ticks since boot; ``None`` when there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else float(fields[19])


def read_state(data_dir: Path) -> ClusterState | None:
    """Return the state of the running cluster of that data folder, or ``None`` when none runs."""
    try:
        state = ClusterState(**json.loads(state_file(data_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if process_start_ticks(state.pid) == state.started else None


class LocalCluster:
    """A running cluster on this machine; as a context manager it ends with the block."""

    def __init__(self, settings: Settings, state: ClusterState) -> None:
        self.settings = settings
        self.state = state

    @property
    def endpoint(self) -> str:
        """The URL of the front door."""
        return self.state.endpoint

    @property
    def access_key(self) -> str:
        """The admin's access key."""
        return self.state.access_key

    @property
    def secret_key(self) -> str:
        """The admin's secret key."""
        return self.state.secret_key

    @property
    def environment(self) -> dict[str, str]:
        """What ``bai env`` exports: settings for our client and for the official one alike."""
        return {
            "BACKEND_ENDPOINT": self.endpoint,
            "BACKEND_ENDPOINT_TYPE": "api",
            "BACKEND_ACCESS_KEY": self.access_key,
            "BACKEND_SECRET_KEY": self.secret_key,
        }

    @classmethod
    def start(
        cls,
        settings: Settings,
        *,
        on_progress: Callable[[str], None] | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> LocalCluster:
        """Start a daemon and wait until everything answers.

        Raises:
            Conflict: one runs already on that data folder.
            RequestTimeout: it was not ready in time; it has been ended again.
            BackendError: it could not start; the sentence says why.
        """
        running = read_state(settings.data_dir)
        if running is not None:
            raise Conflict(f"a cluster runs already on {settings.data_dir} (pid {running.pid}); end it with `bai down`")
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        (settings.data_dir / "logs").mkdir(exist_ok=True)
        log_path = settings.data_dir / "logs" / "daemon.log"
        with log_path.open("ab") as log, tempfile.TemporaryFile() as order:
            order.write(_to_wire(settings))
            order.seek(0)
            daemon = subprocess.Popen(
                [sys.executable, "-m", "backendai_ray.daemon"],
                stdin=order,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        state = _wait_until_ready(daemon, log_path, on_progress or (lambda _: None), timeout_s)
        return cls(settings, state)

    @classmethod
    def attach(cls, settings: Settings) -> LocalCluster:
        """Return the cluster that runs on that data folder.

        Raises:
            NotFound: none runs there.
        """
        state = read_state(settings.data_dir)
        if state is None:
            raise NotFound(f"no cluster runs on {settings.data_dir}; start one with `bai up --detach`")
        return cls(settings, state)

    def stop(self, *, keep_sessions: bool = False, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the cluster, its sessions first unless they are to be kept, and wait until it is gone.

        Raises:
            RequestTimeout: it is still there; nothing was killed by force.
        """
        if process_start_ticks(self.state.pid) != self.state.started:
            return
        os.kill(self.state.pid, signal.SIGUSR1 if keep_sessions else signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while process_start_ticks(self.state.pid) == self.state.started:
            if time.monotonic() > deadline:
                raise RequestTimeout(f"the cluster's daemon (pid {self.state.pid}) did not end in {timeout_s:g} s")
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.state.pid, os.WNOHANG)
            time.sleep(_POLL_S)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _to_wire(settings: Settings) -> bytes:
    """Secrets go along: the daemon reads this from a pipe, and needs them."""
    return json.dumps(settings.model_dump(), default=_revealed).encode()


def _revealed(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def settings_from_wire(data: bytes) -> Settings:
    """Rebuild the settings that :meth:`LocalCluster.start` hands to the daemon; the environment has no say again."""
    return Settings.model_validate(json.loads(data))


def _wait_until_ready(
    daemon: subprocess.Popen[bytes], log_path: Path, on_progress: Callable[[str], None], timeout_s: float
) -> ClusterState:
    deadline = time.monotonic() + timeout_s
    for message in _messages(daemon, deadline):
        if "progress" in message:
            on_progress(message["progress"])
        elif "ready" in message:
            return ClusterState(**message["ready"])
        elif "failed" in message:
            daemon.wait()
            raise BackendError(message["failed"])
    if daemon.poll() is None:
        daemon.terminate()
        daemon.wait()
        raise RequestTimeout(f"the cluster was not ready within {timeout_s:g} s; see {log_path}")
    raise InternalError(f"the cluster's daemon ended with exit code {daemon.returncode}; see {log_path}")


def _messages(daemon: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """Yield the daemon's messages, a JSON object a line, until it closes its output or the deadline passes."""
    assert daemon.stdout is not None
    descriptor = daemon.stdout.fileno()
    buffered = b""
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([descriptor], [], [], left)
        if not readable:
            return
        chunk = os.read(descriptor, 65536)
        if not chunk:
            daemon.wait()
            return
        *lines, buffered = (buffered + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


def write_state(state: ClusterState) -> None:
    """Write the state file, readable by its owner alone, whole or not at all."""
    path = state_file(Path(state.data_dir))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(state), file)
    Path(temporary).replace(path)

"""The box folder: what the process backend keeps about one life, beside its run folder.

SESSIONS/KERNEL/life-ATTEMPT.EPOCH/run/   socket, token, results (seen by the kernel)
SESSIONS/KERNEL/life-ATTEMPT.EPOCH/box/   config.json, pid.json, exit.json, lock, log, hosts, passwd, group
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.agent.backends.base import Launch, Life
from actors.agent.backends.box import processes
from actors.agent.backends.environ import WORK_DIR
from actors.agent.folders import life_folder


@dataclass(frozen=True, slots=True)
class BoxFolder:
    """One life's box; every read tolerates that nothing is there."""

    path: Path

    @classmethod
    def beside(cls, run: Path) -> BoxFolder:
        return cls(run.parent / "box")

    @classmethod
    def of(cls, sessions_dir: Path, life: Life) -> BoxFolder:
        return cls(life_folder(sessions_dir, life) / "box")

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write whole or not at all; readable by us alone, since it holds the kernel's environment."""
        temporary = self.path / "config.json.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(config, file)
        temporary.replace(self.config)

    def read_config(self) -> dict[str, Any]:
        return _read_json(self.config)

    def read_pid(self) -> dict[str, Any]:
        return _read_json(self.path / "pid.json")

    def read_exit(self) -> dict[str, Any]:
        return _read_json(self.path / "exit.json")

    def read_log(self, max_bytes: int) -> bytes:
        """Return the end of what the kernel printed."""
        text = b""
        for name in ("log.1", "log"):
            try:
                text += (self.path / name).read_bytes()
            except OSError:
                continue
        return text[-max_bytes:]

    def is_running(self) -> bool:
        """Return whether the supervisor lives; while it does, something of the kernel may be left."""
        facts = self.read_pid()
        return processes.is_alive(int(facts.get("pid", 0)), int(facts.get("start_time", 0)))

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the supervisor; returns whether it was there to get it."""
        facts = self.read_pid()
        pid = int(facts.get("pid", 0))
        try:
            descriptor = os.pidfd_open(pid) if pid else -1
        except OSError:
            descriptor = -1
        if descriptor < 0:
            return False
        try:
            # Looked at through the descriptor's process, so that a recycled pid is never hit.
            if not processes.is_alive(pid, int(facts.get("start_time", 0))):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait_for_end(self, timeout_s: float) -> bool:
        """Wait for the supervisor's end; returns whether it has ended."""
        facts = self.read_pid()
        try:
            descriptor = os.pidfd_open(int(facts.get("pid", 0)))
        except (OSError, ValueError):
            return True
        try:
            if not self.is_running():
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def find_boxes(sessions_dir: Path) -> Iterator[BoxFolder]:
    """Yield every box that was configured."""
    for config in sorted(sessions_dir.glob("*/life-*/box/config.json")):
        yield BoxFolder(config.parent)


def box_files(launch: Launch, box: BoxFolder) -> dict[str, Path]:
    """Write the small system files that a sandbox has of its own; returns them by their path inside."""
    spec, uid = launch.spec, launch.uid
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    names = spec.cluster_hosts or (spec.hostname,)
    hosts += [f"{loopback_address(spec.session_id, index)} {name}" for index, name in enumerate(names)]
    content = {
        "hosts": "\n".join(hosts) + "\n",
        "hostname": spec.hostname + "\n",
        "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nwork:x:{uid}:{uid}::{WORK_DIR}:/bin/bash\n",
        "group": f"root:x:0:\nwork:x:{uid}:\n",
    }
    for name, text in content.items():
        path = box.path / name
        path.write_text(text)
        path.chmod(0o644)
    return {f"/etc/{name}": box.path / name for name in content}


def loopback_address(session_id: str, index: int) -> str:
    """Return the loopback address of a gang's member, the same wherever it is asked for.

    Gangs share the machine's network; an address each (in 127.64.0.0/10) lets all members use the same port. The
    gang is hashed into 16 bits, the member has 6 (gangs have at most 64 kernels).
    """
    number = (zlib.crc32(session_id.encode()) & 0xFFFF) << 6 | index % 64
    return f"127.{64 + (number >> 16)}.{number >> 8 & 0xFF}.{number & 0xFF}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

"""Kernels as process trees of their own: a supervisor each, a sandbox where the machine allows one."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from actors.agent.backends.base import (
    BackendInfo,
    ComputeBackend,
    Ending,
    Found,
    Launch,
    Life,
    PreparedImage,
    Tell,
    nobody,
)
from actors.agent.backends.box import processes
from actors.agent.backends.box.cgroups import Group
from actors.agent.backends.environ import RUN_DIR, RUNNER_DIR, WORK_DIR, runner_command
from actors.agent.backends.process.layout import BoxFolder, box_files, find_boxes
from actors.agent.backends.process.sandbox import Abilities, Sandbox, probe_abilities, sandbox_command
from backendai_ray.config import Settings
from backendai_ray.core.errors import EngineUnavailable, ImageNotFound, KernelStartFailed
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.runtimes import Runtime
from backendai_ray.kernel.bai_runner.kernelspecs import find_kernelspecs, one_line
from backendai_ray.kernel.bundle import runner_bundle

log = structlog.get_logger()

START_TIMEOUT_S = 30
KILL_TIMEOUT_S = 40
DEFAULT_ALIAS = "python"
_SUPERVISOR = Path(__file__).parent.parent / "box" / "supervisor.py"
_FIRST_UID = 1_500_000_000
_UIDS = 2**28


class ProcessBackend(ComputeBackend):
    """Everything about a life is in its box folder, which is how it is found again."""

    name = "process"

    def __init__(self, settings: Settings, agent_id: AgentId) -> None:
        super().__init__(settings, agent_id)
        self._abilities = Abilities()
        self._runner_dir = Path()
        self._watcher: _EndWatcher | None = None
        self._groups: dict[Life, Group] = {}

    def open(self) -> None:
        self._abilities = probe_abilities()
        self._runner_dir = runner_bundle(self.settings.cache_dir)
        if self._abilities.note:
            log.warning("process.limited_isolation", note=self._abilities.note)

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()

    def probe(self) -> BackendInfo:
        note = self._abilities.note
        labels = {"isolation": "limits-only" if note else "full", "kernel-version": platform.release()}
        labels["python-version"] = platform.python_version()
        return BackendInfo(architecture=platform.machine(), labels=labels | ({"isolation-note": note} if note else {}))

    def health(self) -> str:
        return ""

    def images(self) -> Sequence[str]:
        return sorted({DEFAULT_ALIAS, *(name for name in self.settings.agent.image_aliases if self._is_python(name))})

    def is_prepared(self, reference: str) -> bool:
        return True

    def prepare_image(self, reference: str, architecture: str, tell: Tell = nobody) -> PreparedImage:
        if architecture and architecture != platform.machine():
            raise ImageNotFound(f"{reference} is wanted for {architecture}, but this node is {platform.machine()}")
        if not self._is_python(reference):
            raise ImageNotFound(
                f"there is no image {reference!r}: this node has no container engine and offers "
                f"{', '.join(self.images())} alone",
                image=reference,
            )
        return PreparedImage(
            reference=reference,
            id=sys.executable,
            python=sys.executable,
            shell="/bin/sh",
            jupyter_kernels=tuple(
                Runtime(name=name, language=one_line(spec["language"]), title=one_line(spec["title"]))
                for name, spec in sorted(find_kernelspecs().items())
            ),
        )

    def _is_python(self, reference: str) -> bool:
        return self.settings.agent.image_aliases.get(reference, reference) == DEFAULT_ALIAS

    def kernel_uid(self, kernel_id: KernelId) -> int:
        """Each kernel is a user of its own where we may choose; made from the id, so that nothing is to be kept."""
        if not self._abilities.setpriv:
            return os.geteuid()
        return _FIRST_UID + zlib.crc32(kernel_id.encode()) % _UIDS

    # ── starting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, launch: Launch) -> str:
        box = BoxFolder.beside(launch.folders.run)
        box.path.mkdir(parents=True, exist_ok=True)
        if not box.config.exists():
            box.write_config(self._configure(launch, box))
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(box.config)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_TIMEOUT_S,
                check=False,
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelStartFailed(f"the kernel's supervisor could not be started: {error}", retryable=True) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise KernelStartFailed(f"the kernel's process could not be started: {said}", retryable=True)
        if self._watcher is not None:
            self._watcher.add(launch.life, box)
        return f"process-{launch.life}"

    def _configure(self, launch: Launch, box: BoxFolder) -> dict[str, Any]:
        is_sandboxed = bool(self._abilities.bwrap)
        spec, grant = launch.spec, launch.grant
        files = box_files(launch, box)
        sandbox = Sandbox(
            hostname=spec.hostname,
            work=launch.folders.work,
            run=launch.folders.run,
            runner_dir=self._runner_dir,
            files=files,
            uid=launch.uid,
            shmem_bytes=spec.shmem_bytes,
            tmp_bytes=grant.memory_bytes or 2**30,
            devices=(*grant.device_paths, *(path for one in grant.device_requests for path in one.device_paths)),
            mounts=grant.mounts,
        )
        run_dir = RUN_DIR if is_sandboxed else str(launch.folders.run)
        workdir = WORK_DIR if is_sandboxed else str(launch.folders.work)
        command = runner_command(
            sys.executable,
            runner_dir=RUNNER_DIR if is_sandboxed else str(self._runner_dir),
            pyzmq_dir="",
            run_dir=run_dir,
            workdir=workdir,
            runtime=launch.runtime,
            buffer_bytes=launch.output_buffer_bytes,
            bootstrap=bool(spec.bootstrap_script),
        )
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return {
            "agent_id": self.agent_id,
            "kernel_id": spec.kernel_id,
            "session_id": spec.session_id,
            "attempt": launch.life.attempt,
            "epoch": launch.life.epoch,
            "name": str(launch.life),
            "argv": sandbox_command(self._abilities, sandbox, command),
            "environ": {"PATH": path, **launch.environ, "HOME": workdir},
            "cwd": "/" if is_sandboxed else workdir,
            "is_sandboxed": is_sandboxed,
            "limits": {
                "memory_bytes": grant.memory_bytes,
                "pids": launch.pids_limit,
                "cores": list(grant.cores),
                "cpu_units": grant.cpu_units,
            },
            "rlimits": self._rlimits(launch),
            "log_path": str(box.log),
            "log_bytes": self.settings.agent.log_bytes,
        }

    def _rlimits(self, launch: Launch) -> dict[str, int]:
        limits = {"RLIMIT_NOFILE": 65536, "RLIMIT_CORE": 0}
        if "pids" not in self._abilities.limits and self._abilities.setpriv:
            limits["RLIMIT_NPROC"] = launch.pids_limit
        if "memory" not in self._abilities.limits and launch.grant.memory_bytes:
            limits["RLIMIT_DATA"] = launch.grant.memory_bytes
        return limits

    # ── watching ───────────────────────────────────────────────────────────────────────────────────────────────────

    def list_own(self) -> Sequence[Found]:
        found = []
        for box in find_boxes(self.settings.sessions_dir):
            config = box.read_config()
            if config.get("agent_id") != self.agent_id:
                continue
            life = Life(kernel_id=KernelId(config["kernel_id"]), attempt=config["attempt"], epoch=config["epoch"])
            found.append(
                Found(
                    life=life,
                    container_id=f"process-{life}",
                    is_running=box.is_running(),
                    session_id=config.get("session_id", ""),
                )
            )
            if self._watcher is not None and found[-1].is_running:
                self._watcher.add(life, box)
        return found

    def watch(self, on_end: Callable[[Life], None]) -> None:
        self._watcher = _EndWatcher(on_end)
        self.list_own()

    def is_running(self, life: Life) -> bool:
        return self._box(life).is_running()

    def oom_kills(self, life: Life) -> int:
        group = self._groups.get(life)
        if group is None:
            group = self._groups[life] = self._group(life)
        return group.oom_kills()

    def log(self, life: Life, max_bytes: int) -> bytes:
        return self._box(life).read_log(max_bytes)

    def stats(self, life: Life) -> Mapping[str, int]:
        return self._group(life).usage() if self.is_running(life) else {}

    # ── ending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, life: Life, grace_s: float) -> Ending:
        box = self._box(life)
        if grace_s > 0 and box.signal(signal.SIGTERM):
            box.wait_for_end(grace_s)
        if box.signal(signal.SIGUSR1):
            box.wait_for_end(KILL_TIMEOUT_S)
        if box.is_running():
            raise EngineUnavailable(f"kernel {life.kernel_id} does not end; its processes cannot be killed")
        # Where the supervisor was killed itself, what is left in its groups is ours to end.
        if not self._group(life).kill():
            raise EngineUnavailable(f"kernel {life.kernel_id} does not end; its processes cannot be killed")
        facts = box.read_exit()
        exit_code = facts.get("exit_code")
        message = facts.get("message", "") if facts else "its supervisor is gone"
        return Ending(
            exit_code=exit_code,
            # A child's kill counts as well; the kernel's own end must be such a kill, and not ours.
            oom_killed=bool(facts.get("oom_kills")) and exit_code == 137 and not facts.get("was_told"),
            message=message,
            log=box.read_log(self.settings.agent.log_bytes),
        )

    def remove(self, life: Life, gang: SessionId | None = None) -> None:
        box = self._box(life)
        if box.is_running() or not self._group(life).remove():
            raise EngineUnavailable(f"kernel {life.kernel_id} is not gone yet")
        box.delete()
        self._groups.pop(life, None)

    def _box(self, life: Life) -> BoxFolder:
        return BoxFolder.of(self.settings.sessions_dir, life)

    def _group(self, life: Life) -> Group:
        paths = self._box(life).read_pid().get("cgroups") or {}
        return Group({name: (path, version) for name, (path, version) in paths.items()})


class _EndWatcher:
    """One thread that waits for supervisors to end, by their pid descriptors."""

    def __init__(self, on_end: Callable[[Life], None]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._lives: dict[int, Life] = {}
        self._poll = select.epoll()
        self._wake_read, self._wake_write = os.pipe()
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="process-ends", daemon=True)
        self._thread.start()

    def add(self, life: Life, box: BoxFolder) -> None:
        """Watch one more; a life that is watched already, or has ended, is fine."""
        facts = box.read_pid()
        pid = int(facts.get("pid", 0))
        with self._lock:
            if self._stopped or life in self._lives.values():
                return
            try:
                descriptor = os.pidfd_open(pid) if pid else -1
            except OSError:
                descriptor = -1
            if descriptor >= 0:
                self._lives[descriptor] = life
                self._poll.register(descriptor, select.EPOLLIN)
        if descriptor < 0 or not processes.is_alive(pid, int(facts.get("start_time", 0))):
            self._on_end(life)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        os.write(self._wake_write, b"x")
        self._thread.join(5)
        for descriptor in (*self._lives, self._wake_read, self._wake_write):
            os.close(descriptor)
        self._poll.close()

    def _run(self) -> None:
        while not self._stopped:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake_read:
                    return
                with self._lock:
                    life = self._lives.pop(descriptor, None)
                    self._poll.unregister(descriptor)
                    os.close(descriptor)
                if life is not None:
                    self._on_end(life)

"""What a kernel of the process backend can see and do: the bubblewrap command line, and what works on this machine."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.agent.backends.box.cgroups import usable_controllers
from actors.agent.backends.environ import RUN_DIR, RUNNER_DIR, WORK_DIR
from backendai_ray.core.device_plugins import GrantMount

PROBE_TIMEOUT_S = 20
PROBE_UID = 1_500_000_000
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "fonts", "host.conf", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "pki", "protocols", "resolv.conf", "services", "ssl",
    "terminfo", "timezone",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this machine lets us do; found out once by trying."""

    bwrap: str = ""
    """Path of a bubblewrap that works; empty where none does."""
    setpriv: str = ""
    """Path of a setpriv with which the interpreter runs as another user; empty where we cannot change users."""
    limits: frozenset[str] = frozenset()
    """The control group controllers that can be used."""
    note: str = ""
    """What is missing for full isolation, as a sentence; empty when nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One kernel's view of the machine."""

    hostname: str
    work: Path
    run: Path
    runner_dir: Path
    files: Mapping[str, Path]
    """Read-only files of its own, by their path inside (``/etc/hosts``)."""
    uid: int
    shmem_bytes: int
    tmp_bytes: int
    devices: tuple[str, ...] = ()
    """Device files to be seen, beside those that everybody has."""
    mounts: tuple[GrantMount, ...] = ()


def interpreter_prefixes() -> list[str]:
    """Return the folders that our interpreter and its packages live in."""
    real = os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))
    prefixes = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, real)} | {sys.prefix}
    return sorted(p for p in prefixes if p != "/" and not p.startswith("/usr"))


def sandbox_command(abilities: Abilities, sandbox: Sandbox, command: Sequence[str]) -> list[str]:
    """Return the command line that runs ``command`` inside the sandbox (or, where there is none, beside it)."""
    as_user = _as_user(abilities, sandbox.uid)
    if not abilities.bwrap:
        return [*as_user, *command]
    words = [
        *(abilities.bwrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--hostname", sandbox.hostname, "--new-session"),
        *_system_folders(),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(max(1, sandbox.shmem_bytes)), "--tmpfs", "/dev/shm"),
        *("--perms", "1777", "--size", str(max(1, sandbox.tmp_bytes)), "--tmpfs", "/tmp"),
        *_folders(["/run", "/var/tmp", "/home", "/etc", os.path.dirname(RUNNER_DIR)], itself=True),
        *_folders(interpreter_prefixes(), itself=False),
    ]
    for name in _ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for prefix in interpreter_prefixes():
        words += ["--ro-bind", prefix, prefix]
    words += ["--ro-bind", str(sandbox.runner_dir), RUNNER_DIR]
    for inside, path in sandbox.files.items():
        words += ["--ro-bind", str(path), inside]
    words += ["--bind", str(sandbox.run), RUN_DIR, "--bind", str(sandbox.work), WORK_DIR]
    for device in sandbox.devices:
        words += ["--dev-bind-try", device, device]
    for mount in sandbox.mounts:
        words += ["--ro-bind" if mount.read_only else "--bind", mount.source, mount.target]
    if as_user:
        words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    elif os.geteuid() != 0:
        words += ["--unshare-user"]
    return [*words, "--", *as_user, *command]


def _folders(paths: Sequence[str], *, itself: bool) -> list[str]:
    """Make folders that everybody may pass; left to itself, bubblewrap makes a mount point's parents root's alone."""
    words = []
    for path in paths:
        above = [str(parent) for parent in reversed(Path(path).parents) if str(parent) != "/"]
        for folder in [*above, path] if itself else above:
            words += ["--dir", folder]
    return words


def _system_folders() -> list[str]:
    words = []
    for path in _SYSTEM:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    return words


def _as_user(abilities: Abilities, uid: int) -> list[str]:
    if not abilities.setpriv or uid == os.geteuid():
        return []
    return [abilities.setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]


@functools.cache
def probe_abilities() -> Abilities:
    """Find out what works here, by running the very command line that kernels get."""
    missing = []
    limits = frozenset(usable_controllers())
    if not {"memory", "pids"} <= limits:
        missing.append("control groups cannot be written, so memory and processes are limited per process only")
    is_root = os.geteuid() == 0
    setpriv = shutil.which("setpriv") or "" if is_root else ""
    bwrap = shutil.which("bwrap") or ""
    abilities = Abilities(bwrap=bwrap, setpriv=setpriv, limits=limits)
    if not bwrap:
        missing.append("bubblewrap (bwrap) is not installed, so kernels see the machine's files and processes")
    elif why := _fails(abilities):
        abilities = Abilities(bwrap=bwrap, limits=limits)
        if setpriv and not _fails(abilities):
            missing.append(f"kernels cannot have users of their own ({why})")
        else:
            abilities = Abilities(setpriv=setpriv, limits=limits)
            missing.append(f"bubblewrap does not work here ({why}), so kernels see the machine's files and processes")
    if not abilities.bwrap and setpriv and _fails(Abilities(setpriv=setpriv)):
        abilities = Abilities(limits=limits)
        missing.append("the interpreter cannot be run as another user")
    return Abilities(abilities.bwrap, abilities.setpriv, limits, "; ".join(missing))


def _fails(abilities: Abilities) -> str:
    """Return why the interpreter cannot be run with these abilities; empty when it can."""
    sandbox = Sandbox(
        hostname="probe",
        work=Path("/usr"),
        run=Path("/usr"),
        runner_dir=Path("/usr"),
        files={},
        uid=PROBE_UID if abilities.setpriv else os.geteuid(),
        shmem_bytes=2**20,
        tmp_bytes=2**20,
    )
    command = sandbox_command(abilities, sandbox, [sys.executable, "-I", "-c", "import zmq.backend"])
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False, env={"PATH": os.defpath}, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said[-1][:200] if said else f"exit code {done.returncode}")

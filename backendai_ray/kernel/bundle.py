"""Lays the runner's files out as a directory that can be mounted into any kernel.

Runs on the agent's side. The directory is named after its content, so that a new release never changes what a
running kernel has mounted, and agents that share a cache do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import secrets
import shutil
import subprocess
from pathlib import Path

from backendai_ray.core.errors import KernelStartFailed

ENTRY_POINT = "main.py"
PACKAGE = "bai_runner"
COMPILE_TIMEOUT_S = 60.0

_SOURCE = Path(__file__).parent


def runner_bundle(cache_dir: Path) -> Path:
    """Return the directory with ``main.py`` and its package, made on the first call.

    It is read-only and holds bytecode for the agent's own Python version (see :func:`precompile` for others).
    """
    files = _files()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    target = cache_dir / f"runner-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    with DirectoryInMaking(target) as making:
        for name, content in files.items():
            path = making / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if path.parent != making:
                # The source never changes, so nobody needs to compare it with its bytecode.
                py_compile.compile(
                    str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
                )
    return target


def precompile(bundle: Path, interpreter: Path) -> None:
    """Add bytecode for another Python to a bundle: without it every start compiles the runner (some 30 ms).

    Only for interpreters that are trusted as much as the agent: what it writes is loaded by every kernel.

    Raises:
        KernelStartFailed: the interpreter cannot compile the runner.
    """
    command = [str(interpreter), "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    package = bundle / PACKAGE
    package.chmod(0o755)
    (package / "__pycache__").chmod(0o755)
    try:
        done = subprocess.run(
            [*command, str(package)], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelStartFailed(f"{interpreter} cannot compile the runner: {error}") from error
    finally:
        make_read_only(package)
    if done.returncode:
        raise KernelStartFailed(f"{interpreter} cannot compile the runner: {done.stdout[-500:]}{done.stderr[-500:]}")


def _files() -> dict[str, bytes]:
    files = {ENTRY_POINT: (_SOURCE / "runner_main.py").read_bytes()}
    for path in (_SOURCE / PACKAGE).glob("*.py"):
        files[f"{PACKAGE}/{path.name}"] = path.read_bytes()
    return files


class DirectoryInMaking:
    """A directory that appears under its name complete and read-only, or not at all."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._making = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}"

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._making.mkdir(mode=0o755)
        return self._making

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            shutil.rmtree(self._making, ignore_errors=True)
            return
        make_read_only(self._making)
        try:
            self._making.rename(self._target)
        except OSError:
            _remove_read_only(self._making)
            if not self._target.is_dir():
                raise
            # Somebody else was faster; theirs has the same content.


def make_read_only(directory: Path) -> None:
    """Take write permission off a tree; everybody may read it."""
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o555 if path.is_dir() or (os.access(path, os.X_OK) and path.suffix == ".so") else 0o444)


def _remove_read_only(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)

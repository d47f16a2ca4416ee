"""Lays the runner's files out as a directory that can be mounted into any kernel.

Runs on the agent's side. The directory is named after its content, so that a new release never changes what a
running kernel has mounted, and agents that share a cache do not disturb each other.
"""

from __future__ import annotations

import hashlib
import py_compile
import subprocess
from pathlib import Path

from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.kernel.directories import DirectoryInMaking, make_read_only
from backendai_ray.kernel.pyzmq import pyzmq_for

__all__ = ["precompile", "pyzmq_for", "runner_bundle"]

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

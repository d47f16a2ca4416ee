"""Finds a pyzmq that fits the Python of an image: the agent's own where it does, otherwise a wheel from the index."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from backendai_ray.core.errors import InvalidParameter, Unavailable, UnsupportedByImage
from backendai_ray.kernel.directories import DirectoryInMaking

REQUIREMENT = "pyzmq>=26.2,<28"
DOWNLOAD_TIMEOUT_S = 120.0
OLDEST_PYTHON = (3, 7)

# Tags that a wheel may carry, the most portable first.
_PLATFORMS = {
    "glibc": (
        "manylinux2014", "manylinux_2_17", "manylinux2010", "manylinux_2_12", "manylinux_2_24", "manylinux_2_26",
        "manylinux_2_27", "manylinux_2_28", "manylinux_2_31", "manylinux_2_34",
    ),
    "musl": ("musllinux_1_1", "musllinux_1_2"),
}  # fmt: skip
_NOT_NEEDED = ("tests", "green", "auth", "ssh", "log", "devices", "eventloop", "cffi")
_UNREACHABLE = "connection|timed out|retrying|resolve|SSLError|ProxyError|No module named pip"
_CORE_PATTERN = "zmq/backend/cython/_zmq*.so"


def pyzmq_for(cache_dir: Path, python: str, libc: str, arch: str) -> Path:
    """Return a directory that holds pyzmq for CPython *python*; give it to the runner as ``--lib``.

    The first call for an interpreter copies or downloads (seconds, blocking); later ones find it in the cache.

    Args:
        cache_dir: where such directories are kept.
        python: ``"3.11"``.
        libc: ``"glibc"`` or ``"musl"``.
        arch: as ``uname -m`` says it, ``"x86_64"``.

    Raises:
        InvalidParameter: one of the three cannot be.
        UnsupportedByImage: there is no pyzmq for such a Python.
        Unavailable: no package index could be reached.
    """
    version = _parse_version(python)
    if libc not in _PLATFORMS:
        raise InvalidParameter(f"libc: {libc!r} is not known; use glibc or musl", field="libc")
    if not re.fullmatch(r"\w{1,32}", arch):
        raise InvalidParameter(f"arch: {arch!r} is not the name of a machine type", field="arch")
    target = cache_dir / f"pyzmq-cp{version[0]}{version[1]}-{libc}-{arch}"
    if target.is_dir():
        return target
    own = _own_site() if (version, libc, arch) == _own_interpreter() else None
    with DirectoryInMaking(target) as making:
        if own is not None:
            _copy(own, making)
        else:
            _fetch(making, version, libc, arch)
    return target


def _parse_version(python: str) -> tuple[int, int]:
    match = re.match(r"(\d{1,2})\.(\d{1,3})(?:\.|$)", python)
    if match is None:
        raise InvalidParameter(f"python: {python!r} is not a version like 3.11", field="python")
    version = int(match[1]), int(match[2])
    if version < OLDEST_PYTHON:
        raise UnsupportedByImage(f"the image's Python is {python}; the runner needs 3.7 or newer")
    return version


def _own_interpreter() -> tuple[tuple[int, int], str, str] | None:
    if sys.implementation.name != "cpython":
        return None
    libc = "glibc" if platform.libc_ver()[0] == "glibc" else "musl"
    return (sys.version_info[0], sys.version_info[1]), libc, platform.machine()


def _own_site() -> Path | None:
    """Where the agent's own pyzmq lies, if it is a wheel that brings its libraries along."""
    spec = importlib.util.find_spec("zmq")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parent.parent
    complete = any(site.glob(_CORE_PATTERN)) and any((site / "pyzmq.libs").glob("libzmq*"))
    return site if complete else None


def _copy(site: Path, target: Path) -> None:
    """Copy what importing needs: tests, type stubs and the rarely used parts stay behind."""

    def left_out(directory: str, names: list[str]) -> list[str]:
        return [name for name in names if name in (*_NOT_NEEDED, "__pycache__") or name.endswith((".pyi", ".pxd"))]

    shutil.copytree(site / "zmq", target / "zmq", ignore=left_out)
    shutil.copytree(site / "pyzmq.libs", target / "pyzmq.libs")


def _fetch(target: Path, version: tuple[int, int], libc: str, arch: str) -> None:
    named = f"CPython {version[0]}.{version[1]} ({libc}, {arch})"
    with tempfile.TemporaryDirectory(prefix="pyzmq-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--retries", "1", "--timeout", "15"]
        command += ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--dest", scratch]
        command += ["--python-version", f"{version[0]}.{version[1]}"]
        for platform_tag in _PLATFORMS[libc]:
            command += ["--platform", f"{platform_tag}_{arch}"]
        try:
            done = subprocess.run(
                [*command, REQUIREMENT], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"pyzmq for {named}: no answer from the package index") from error
        if done.returncode:
            raise _explain(named, done.stderr)
        _unpack(next(Path(scratch).glob("*.whl")), target, named)


def _explain(named: str, complaint: str) -> Unavailable | UnsupportedByImage:
    unreachable = re.search(
        r"connection|timed out|retrying|resolve|SSLError|ProxyError|No module named pip", complaint, re.I
    )
    if unreachable:
        return Unavailable(f"pyzmq for {named} is not cached and cannot be fetched now: {complaint.strip()[-300:]}")
    return UnsupportedByImage(
        f"there is no pyzmq for {named}, so its sessions can run startup commands and shell commands only"
    )


def _unpack(wheel: Path, target: Path, named: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise Unavailable(f"pyzmq for {named} arrived damaged ({damaged}); try again")
            members = [name for name in archive.namelist() if _is_needed(name)]
            archive.extractall(target, members)
    except zipfile.BadZipFile as error:
        raise Unavailable(f"pyzmq for {named} arrived damaged; try again") from error
    if not any(target.glob(_CORE_PATTERN)):
        raise UnsupportedByImage(f"the pyzmq for {named} ({wheel.name}) has not the core that the runner loads")


def _is_needed(name: str) -> bool:
    parts = name.split("/")
    if parts[0] == "pyzmq.libs":
        return True
    return parts[0] == "zmq" and not set(parts) & set(_NOT_NEEDED) and not name.endswith((".pyi", ".pxd"))

"""The original Backend.AI agent from PyPI in an environment of its own, to run its code beside ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

PACKAGE = "backend.ai-agent==23.9.10"
"""Its last release for Python 3.11; newer ones need a newer Python."""
_PYTHON = "python3.11"
_INSTALL_LIMIT_S = 900
_SCRIPT = Path(__file__).with_name("original_allocator.py")


class OriginalMissing(Exception):
    """The original cannot be run here; says why."""


def find_python(given: str) -> Path:
    """Return an interpreter that has the original, installed into the user's cache folder the first time.

    Args:
        given: An interpreter that has it already, else empty.

    Raises:
        OriginalMissing: there is no Python 3.11, or it cannot be installed.
    """
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "backendai-ray" / "bench" / PACKAGE.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        base = shutil.which(_PYTHON)
        if base is None:
            raise OriginalMissing(f"{PACKAGE} needs {_PYTHON}, which is not there")
        print(f"alloc: installing {PACKAGE} into {folder} (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run(base, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE)
        done.touch()
    return python


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as error:
        raise OriginalMissing(f"{' '.join(command)} failed: {error.stderr.strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OriginalMissing(f"{' '.join(command)} failed: {error}") from error


class OriginalAllocator:
    """As a context manager: the original's allocator in a process of its own."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def __enter__(self) -> OriginalAllocator:
        # -I: neither this folder nor the environment's paths, so that nothing of ours is imported there.
        try:
            self._process = subprocess.Popen(
                [self._python, "-I", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise OriginalMissing(f"{self._python} cannot be run: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def rate(self, case: str, strategy: str, seconds: float) -> float:
        """Return how many allocate and free pairs it does per second.

        Raises:
            OriginalMissing: it does not answer.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{case} {strategy} {seconds}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is noticed below
        answer = self._process.stdout.readline()
        if not answer:
            raise OriginalMissing("its process ended; what it said is above")
        return float(answer)

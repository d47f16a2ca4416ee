"""Cached directories that several agents may make and use at the same time."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path


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

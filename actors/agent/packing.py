"""Archives of a session's files, made without following links."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import BinaryIO, cast


def add_entry(tar: tarfile.TarFile, parent: int, name: str, arcname: str) -> None:
    """Add a file, a link as such, or a folder with all below it; devices and what vanishes meanwhile are left out."""
    facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
    info = tarfile.TarInfo(arcname)
    info.mtime, info.mode = facts.st_mtime, stat.S_IMODE(facts.st_mode)
    if stat.S_ISREG(facts.st_mode):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with os.fdopen(descriptor, "rb") as file:
            info.size = os.fstat(descriptor).st_size
            tar.addfile(info, cast("BinaryIO", _Padded(file, info.size)))
    elif stat.S_ISLNK(facts.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
        tar.addfile(info)
    elif stat.S_ISDIR(facts.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        below = os.open(name, flags, dir_fd=parent)
        try:
            for child in sorted(os.listdir(below)):
                try:
                    add_entry(tar, below, child, f"{arcname}/{child}")
                except FileNotFoundError:
                    continue
        finally:
            os.close(below)


class _Padded:
    """Reads exactly as many bytes as were promised, also from a file that shrinks while it is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        data += bytes(wanted - len(data))
        self._left -= len(data)
        return data

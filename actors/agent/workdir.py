"""A session's folder as the agent touches it: the user inside may change anything at any moment, links included.

Every path is walked one component at a time by folder descriptors, never following a link, so that nothing outside
the folder can be reached, whatever is renamed or linked meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from actors.agent.packing import add_entry
from actors.contracts import FileEntry
from backendai_ray.core.errors import FileMissing, InsufficientResources, InvalidParameter, PathOutsideSession
from backendai_ray.core.paths import parse_session_path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_ENTRIES = 10_000


class WorkFolder:
    """One session's folder. Every method blocks on the disk; call it from a worker thread."""

    def __init__(self, root: Path, uid: int) -> None:
        self._root = root
        self._uid = uid

    def list(self, path: str) -> list[FileEntry]:
        """Return the entries of a folder by name; a file lists as itself.

        Raises:
            FileMissing: there is no such file or folder.
            PathOutsideSession: the path leads out.
        """
        relative = plain_path(path)
        with _told(path), self._parent(relative) as (parent, name):
            facts = os.stat(name or ".", dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(facts.st_mode):
                return [describe(name, facts)]
            folder = os.open(name or ".", _FOLDER, dir_fd=parent)
            try:
                return sorted(_entries(folder), key=lambda entry: entry.name)
            finally:
                os.close(folder)

    def open_file(self, path: str) -> tuple[int, int]:
        """Open a regular file to read; returns its descriptor and size.

        Raises:
            FileMissing: there is no such file.
            InvalidParameter: it is a folder, a link or a device.
            PathOutsideSession: the path leads out.
        """
        with _told(path), self._parent(plain_path(path)) as (parent, name):
            descriptor = os.open(name or ".", _FILE, dir_fd=parent)
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                os.close(descriptor)
                kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
                raise InvalidParameter(f"path: {path!r} is {kind}", field="path")
            return descriptor, facts.st_size

    def place(self, upload: Path, path: str) -> None:
        """Move a complete upload to its name in the folder, replacing a file of that name; makes missing folders.

        Raises:
            InvalidParameter: the name belongs to a folder.
            PathOutsideSession: the path leads out.
            InsufficientResources: the disk is full.
        """
        relative = plain_path(path)
        if not relative.parts:
            raise InvalidParameter(f"path: {path!r} names the session's folder, not a file", field="path")
        with _told(path), self._parent(relative, create=True) as (parent, name):
            descriptor = os.open(upload, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o644)
                self._give(descriptor)
            finally:
                os.close(descriptor)
            os.rename(upload, name, dst_dir_fd=parent)

    def pack(self, tar: tarfile.TarFile, path: str) -> None:
        """Add a file, a link as such, or a folder with all below it to an archive, under its path.

        Raises:
            FileMissing: there is no such thing.
            PathOutsideSession: the path leads out.
        """
        relative = plain_path(path)
        with _told(path), self._parent(relative) as (parent, name):
            add_entry(tar, parent, name or ".", str(relative) if name else ".")

    @contextmanager
    def _parent(self, relative: PurePosixPath, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Yield the descriptor of the folder that holds the path's last component, and that component."""
        folder = os.open(self._root, _FOLDER)
        try:
            for part in relative.parts[:-1]:
                below = self._step(folder, part, create=create)
                os.close(folder)
                folder = below
            yield folder, relative.name
        finally:
            os.close(folder)

    def _step(self, folder: int, name: str, *, create: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
        os.mkdir(name, 0o755, dir_fd=folder)
        below = os.open(name, _FOLDER, dir_fd=folder)
        self._give(below)
        return below

    def _give(self, descriptor: int) -> None:
        if self._uid != os.geteuid():
            os.fchown(descriptor, self._uid, self._uid)


def plain_path(path: str) -> PurePosixPath:
    """Return a user's path relative to the folder, without ``.`` and ``..``.

    Raises:
        InvalidParameter, PathOutsideSession: see :func:`backendai_ray.core.paths.parse_session_path`.
    """
    parts: list[str] = []
    for part in parse_session_path(path).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def read_untrusted(path: Path, max_bytes: int) -> bytes:
    """Return the end of a file that the kernel's user could have replaced by anything; empty when it is no file."""
    try:
        descriptor = os.open(path, _FILE)
    except OSError:
        return b""
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return b""
        return os.pread(descriptor, max_bytes, max(0, facts.st_size - max_bytes))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def describe(name: str, facts: os.stat_result) -> FileEntry:
    """Return one entry of a listing."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
    return FileEntry(
        name=name,
        kind=kinds.get(stat.S_IFMT(facts.st_mode), "other"),
        size=facts.st_size,
        mode=stat.filemode(facts.st_mode),
        modified_at=facts.st_mtime,
    )


def _entries(folder: int) -> Iterator[FileEntry]:
    with os.scandir(folder) as scan:
        for count, entry in enumerate(scan):
            if count >= MAX_ENTRIES:
                return
            try:
                yield describe(entry.name, entry.stat(follow_symlinks=False))
            except OSError:
                continue  # deleted meanwhile


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn what the file system says into a sentence."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: str) -> Exception:
    """Return the error of our tree that says what a failed file operation means."""
    shown = path[:120]
    match error.errno:
        case errno.ENOENT:
            return FileMissing(f"there is no file {shown!r} in the session")
        case errno.ELOOP:
            return PathOutsideSession(f"path: {shown!r} goes over a link, which is not followed", field="path")
        case errno.ENOTDIR:
            # Opening a link as a folder without following it says the same.
            return InvalidParameter(f"path: a part of {shown!r} is no folder, or is a link", field="path")
        case errno.EISDIR | errno.ENOTEMPTY | errno.EEXIST:
            return InvalidParameter(f"path: {shown!r} is a folder", field="path")
        case errno.ENOSPC | errno.EDQUOT:
            return InsufficientResources(f"no room is left on the node's disk for {shown!r}")
        case errno.ENAMETOOLONG:
            return InvalidParameter(f"path: a part of {shown!r} is longer than a file name may be", field="path")
        case errno.ENXIO:
            return InvalidParameter(f"path: {shown!r} is no regular file", field="path")
    return InvalidParameter(f"path: {shown!r} cannot be used: {error.strerror}", field="path")

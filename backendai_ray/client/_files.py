"""Files: which local file goes where in a session and back, in requests of a bounded size."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from backendai_ray.core.errors import BackendError, FileMissing, InvalidParameter, PathOutsideSession

OnBytes = Callable[[int, int], None]
"""Called with ``(bytes done, bytes in all)``; the latter is 0 where it is not known."""

FILES_PER_REQUEST = 20
BYTES_PER_REQUEST = 32 * 2**20
"""Files are sent together up to this size; a larger one goes alone."""


@dataclass(frozen=True, slots=True)
class PlannedUpload:
    """One local file and its place in the session."""

    source: Path
    target: str
    size: int


def plan_upload(local: str | Path, remote: str) -> list[PlannedUpload]:
    """Return what to send to have ``local`` at ``remote``, as ``cp -r`` would.

    A ``remote`` that ends with ``/`` (or is ``.``) is a folder that gets it under its own name; else it is the new
    name. Of a folder, regular files are taken (links to files are followed); empty folders are not.

    Raises:
        FileMissing: there is no such local file.
        InvalidParameter: it is neither a file nor a folder.
    """
    source = Path(local)
    if not source.exists():
        raise FileMissing(f"{source}: there is no such file here", field="local")
    target = PurePosixPath(remote or ".")
    if remote in ("", ".") or remote.endswith("/"):
        target = target / source.resolve().name
    if source.is_file():
        return [PlannedUpload(source, str(target), source.stat().st_size)]
    if not source.is_dir():
        raise InvalidParameter(f"{source}: it is neither a file nor a folder", field="local")
    planned = []
    for folder, subfolders, names in os.walk(source):
        subfolders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file():
                inner = path.relative_to(source).as_posix()
                planned.append(PlannedUpload(path, str(target / inner), path.stat().st_size))
    return planned


def in_batches(planned: Sequence[PlannedUpload]) -> Iterator[list[PlannedUpload]]:
    """Yield the uploads in requests of a bounded number of files and bytes."""
    batch: list[PlannedUpload] = []
    size = 0
    for item in planned:
        if batch and (len(batch) == FILES_PER_REQUEST or size + item.size > BYTES_PER_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch


class _CountedFile:
    """A file that tells how far it has been read."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_read(len(data))
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def opened_parts(batch: Sequence[PlannedUpload], on_read: Callable[[int], None]) -> Iterator[list[tuple[str, Any]]]:
    """Open the files of one request as multipart fields."""
    with ExitStack() as stack:
        parts = []
        for item in batch:
            file = _CountedFile(stack.enter_context(item.source.open("rb")), on_read)
            # Percent-encoded, as the server reads it: a name may hold what a header may not.
            parts.append(("src", (quote(item.target), file, "application/octet-stream")))
        yield parts


class MultipartTar:
    """Takes the one part out of a multipart body that comes in pieces of any size."""

    def __init__(self, boundary: str, out: IO[bytes]) -> None:
        self._end = b"\r\n--" + boundary.encode()
        self._out = out
        self._buffer = b"\r\n"
        self._state = "preamble"

    def feed(self, data: bytes) -> None:
        """Take the next piece in."""
        self._buffer += data
        if self._state == "preamble":
            start = self._buffer.find(self._end)
            if start < 0:
                return
            self._buffer = self._buffer[start + len(self._end) :]
            self._state = "headers"
        if self._state == "headers":
            headers_end = self._buffer.find(b"\r\n\r\n")
            if headers_end < 0:
                return
            self._buffer = self._buffer[headers_end + 4 :]
            self._state = "body"
        if self._state == "body":
            self._feed_body()

    def _feed_body(self) -> None:
        stop = self._buffer.find(self._end)
        if stop >= 0:
            self._out.write(self._buffer[:stop])
            self._buffer, self._state = b"", "done"
            return
        safe = max(0, len(self._buffer) - len(self._end))
        self._out.write(self._buffer[:safe])
        self._buffer = self._buffer[safe:]

    def finish(self) -> None:
        """Check that the part was whole.

        Raises:
            BackendError: the body ended before its closing boundary.
        """
        if self._state != "done":
            raise BackendError("the download ended before its end; try again")


def extract(archive: IO[bytes], remote: str, local: Path) -> list[Path]:
    """Put what a downloaded tar holds under ``local`` and return the files written.

    If ``local`` is a folder (or ends in one that is to be made), ``remote`` keeps its own name in it; else it is the
    new name. What would land outside is refused.

    Raises:
        PathOutsideSession: the archive wants to write outside of ``local``.
    """
    asked = PurePosixPath(remote)
    root = local / asked.name if local.is_dir() else local
    written = []
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for member in tar:
            target = _target(root, asked, member.name)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.issym():
                written.append(_link(root, target, member.linkname))
            elif member.isfile() or member.islnk():
                written.append(_copy_out(tar, member, target))
    return written


def _target(root: Path, asked: PurePosixPath, member: str) -> Path:
    """Return where a member goes; members are named from the session's folder, or from the asked path's parent."""
    path = PurePosixPath(member)
    for base in (asked, PurePosixPath(asked.name)):
        if path == base:
            return root
        if path.is_relative_to(base):
            inner = path.relative_to(base)
            if ".." not in inner.parts:
                return root.joinpath(*inner.parts)
    raise PathOutsideSession(f"the server sent {member!r}, which is not part of {str(asked)!r}; it was not written")


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> Path:
    content = tar.extractfile(member)
    if content is None:
        raise BackendError(f"the server sent {member.name!r} without its content")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()  # never write through a link
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(stat.S_IMODE(member.mode) & 0o777 | stat.S_IRUSR | stat.S_IWUSR)
    return target


def _link(root: Path, target: Path, points_to: str) -> Path:
    inside = os.path.normpath(os.path.join(target.parent, points_to))
    if os.path.isabs(points_to) or not Path(inside).is_relative_to(os.path.normpath(root)):
        raise PathOutsideSession(f"the server sent a link {target.name!r} to {points_to!r}; it was not made")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(points_to)
    return target


@contextmanager
def download_buffer() -> Iterator[IO[bytes]]:
    """Keep a download in memory while it is small and on disk when it is not."""
    with tempfile.SpooledTemporaryFile(max_size=4 * 2**20) as file:
        yield file

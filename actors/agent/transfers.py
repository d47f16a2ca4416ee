"""Uploads and downloads of sessions' files, in pieces; a client that goes away leaves nothing behind for long."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.agent.workdir import WorkFolder, disk_error, plain_path
from actors.contracts import Transfer
from backendai_ray.core.errors import InvalidParameter, KernelBusy, NotFound
from backendai_ray.core.ids import KernelId

EXPIRES_AFTER_S = 600.0
MAX_OPEN = 256
MAX_READ_BYTES = 16 * 2**20


def write_chunk(uploads: Path, folder: WorkFolder, path: str, offset: int, data: bytes, *, final: bool) -> None:
    """Take one piece of an upload; with the final one the file appears under its name, whole.

    A repeated piece is harmless. Blocks on the disk.

    Raises:
        InvalidParameter, PathOutsideSession: the path or the offset cannot be.
        InsufficientResources: the disk is full; the upload is dropped.
    """
    if offset < 0:
        raise InvalidParameter("offset: cannot be negative", field="offset")
    partial = _partial(uploads, path)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if offset == 0:
                os.ftruncate(descriptor, 0)
            elif offset > os.fstat(descriptor).st_size:
                raise InvalidParameter(f"offset: a piece before byte {offset} of {path!r} is missing", field="offset")
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], offset + written)
        finally:
            os.close(descriptor)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    if final:
        try:
            folder.place(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def abort_upload(uploads: Path, path: str) -> None:
    """Drop an upload that will not be finished."""
    _partial(uploads, path).unlink(missing_ok=True)


def _partial(uploads: Path, path: str) -> Path:
    # Beside the session's folder and not in it: the user never sees half a file, and it goes with the kernel.
    return uploads / hashlib.sha256(str(plain_path(path)).encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass(slots=True)
class _Open:
    kernel_id: KernelId
    descriptor: int
    size: int
    used_at: float


class Downloads:
    """Prepared downloads: open descriptors that are read by offset. Thread-safe; every method blocks on the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def prepare(
        self, kernel_id: KernelId, folder: WorkFolder, scratch: Path, paths: Sequence[str], *, archive: bool
    ) -> Transfer:
        """Open one file, or pack several files and folders into a tar.

        Raises:
            FileMissing: one of them is not there.
            InvalidParameter: no path, or one file is wanted and it is none.
            KernelBusy: too many downloads are open on this node.
        """
        self.expire()
        if len(self._open) >= MAX_OPEN:
            raise KernelBusy("too many downloads are under way on this node; try again in a minute")
        if not paths or (len(paths) > 1 and not archive):
            raise InvalidParameter("paths: give one file, or several to be packed", field="paths")
        if archive:
            descriptor = _pack(folder, scratch, paths)
            size = os.fstat(descriptor).st_size
        else:
            descriptor, size = folder.open_file(paths[0])
        transfer = Transfer(id=uuid.uuid4().hex, size=size)
        with self._lock:
            self._open[transfer.id] = _Open(kernel_id, descriptor, size, time.monotonic())
        return transfer

    def read(self, transfer_id: str, offset: int, size: int) -> bytes:
        """Return a piece; empty at the end.

        Raises:
            NotFound: there is no such download (any more).
        """
        if offset < 0 or size < 0:
            raise InvalidParameter("offset: cannot be negative", field="offset")
        with self._lock:
            known = self._open.get(transfer_id)
            if known is None:
                raise NotFound("this download has ended or expired; start it again")
            known.used_at = time.monotonic()
            # Read under a descriptor of our own: a close meanwhile must not hand us another file's bytes.
            descriptor = os.dup(known.descriptor)
        try:
            return os.pread(descriptor, min(size, MAX_READ_BYTES, max(0, known.size - offset)), offset)
        finally:
            os.close(descriptor)

    def close(self, transfer_id: str) -> None:
        """Drop a download; an unknown one counts as dropped."""
        with self._lock:
            known = self._open.pop(transfer_id, None)
        if known is not None:
            os.close(known.descriptor)

    def close_kernel(self, kernel_id: KernelId) -> None:
        """Drop all downloads of a kernel."""
        for transfer_id in [key for key, known in list(self._open.items()) if known.kernel_id == kernel_id]:
            self.close(transfer_id)

    def expire(self) -> None:
        """Drop downloads that nobody has read for a while."""
        now = time.monotonic()
        for transfer_id in [key for key, known in list(self._open.items()) if now - known.used_at > EXPIRES_AFTER_S]:
            self.close(transfer_id)

    def close_all(self) -> None:
        for transfer_id in list(self._open):
            self.close(transfer_id)


def _pack(folder: WorkFolder, scratch: Path, paths: Sequence[str]) -> int:
    """Return the descriptor of a tar in a file without a name, which vanishes with its last descriptor."""
    try:
        with tempfile.TemporaryFile(dir=scratch) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for path in paths:
                folder.pack(tar, path)
            tar.close()
            return os.dup(file.fileno())
    except OSError as error:
        raise disk_error(error, ", ".join(paths)) from error

"""Files of a session: pieces, links, and everything a user can do to lead the agent astray."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import pytest

from actors.agent import transfers
from actors.agent.transfers import Downloads, abort_upload, write_chunk
from actors.agent.workdir import WorkFolder, disk_error, plain_path, read_untrusted
from backendai_ray.core.errors import (
    FileMissing,
    InsufficientResources,
    InvalidParameter,
    NotFound,
    PathOutsideSession,
)
from backendai_ray.core.ids import KernelId

KERNEL = KernelId("k")


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "outside").write_text("secret")
    return tmp_path / "work"


@pytest.fixture
def folder(work: Path) -> WorkFolder:
    return WorkFolder(work, os.geteuid())


def test_pieces_become_a_file_at_the_end(folder: WorkFolder, work: Path, uploads: Path) -> None:
    write_chunk(uploads, folder, "a/b.txt", 0, b"one,", final=False)
    assert list(work.iterdir()) == []
    for _ in range(2):  # a repeated piece
        write_chunk(uploads, folder, "/home/work/a/./b.txt", 4, b"two", final=False)
    write_chunk(uploads, folder, "a/x/../b.txt", 7, b"!", final=True)
    assert (work / "a/b.txt").read_bytes() == b"one,two!"
    assert list(uploads.iterdir()) == []


def test_upload_starts_anew_at_offset_zero(folder: WorkFolder, work: Path, uploads: Path) -> None:
    write_chunk(uploads, folder, "f", 0, b"a long first try", final=False)
    write_chunk(uploads, folder, "f", 0, b"short", final=True)
    assert (work / "f").read_bytes() == b"short"


def test_upload_replaces_a_file_and_no_folder(folder: WorkFolder, work: Path, uploads: Path) -> None:
    (work / "f").write_text("old")
    (work / "d").mkdir()
    write_chunk(uploads, folder, "f", 0, b"new", final=True)
    assert (work / "f").read_bytes() == b"new"
    with pytest.raises(InvalidParameter, match="folder"):
        write_chunk(uploads, folder, "d", 0, b"x", final=True)
    with pytest.raises(InvalidParameter, match="folder"):
        write_chunk(uploads, folder, ".", 0, b"x", final=True)
    assert list(uploads.iterdir()) == []


def test_missing_piece_and_negative_offset(folder: WorkFolder, uploads: Path) -> None:
    with pytest.raises(InvalidParameter, match="missing"):
        write_chunk(uploads, folder, "f", 5, b"x", final=False)
    with pytest.raises(InvalidParameter):
        write_chunk(uploads, folder, "f", -1, b"x", final=False)


def test_abort(folder: WorkFolder, uploads: Path) -> None:
    write_chunk(uploads, folder, "f", 0, b"x", final=False)
    for _ in range(2):
        abort_upload(uploads, "f")
    assert list(uploads.iterdir()) == []


def test_full_disk_drops_the_upload(folder: WorkFolder, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(InsufficientResources, match="no room"):
        write_chunk(uploads, folder, "f", 0, b"x", final=False)
    assert list(uploads.iterdir()) == []


@pytest.mark.parametrize("path", ["..", "../outside", "a/../../outside", "/etc/passwd", "/home/work/../x"])
def test_paths_that_climb_out(folder: WorkFolder, uploads: Path, path: str) -> None:
    for attempt in (
        lambda: folder.list(path),
        lambda: folder.open_file(path),
        lambda: write_chunk(uploads, folder, path, 0, b"x", final=True),
    ):
        with pytest.raises(PathOutsideSession):
            attempt()


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 2000, "y" * 300])
def test_unusable_paths(folder: WorkFolder, path: str) -> None:
    with pytest.raises((InvalidParameter, FileMissing)):
        folder.open_file(path)


def test_links_are_not_followed(folder: WorkFolder, work: Path, uploads: Path, tmp_path: Path) -> None:
    (work / "file-link").symlink_to(tmp_path / "outside")
    (work / "dir-link").symlink_to(tmp_path)
    for path in ("file-link", "dir-link/outside"):
        with pytest.raises((PathOutsideSession, InvalidParameter)):
            folder.open_file(path)
    with pytest.raises((PathOutsideSession, InvalidParameter)):
        write_chunk(uploads, folder, "dir-link/outside", 0, b"x", final=True)
    write_chunk(uploads, folder, "file-link", 0, b"mine", final=True)
    assert (tmp_path / "outside").read_text() == "secret"
    assert not (work / "file-link").is_symlink()


def test_odd_files_do_not_block(folder: WorkFolder, work: Path) -> None:
    os.mkfifo(work / "fifo")
    with pytest.raises(InvalidParameter, match="no regular file"):
        folder.open_file("fifo")
    assert read_untrusted(work / "fifo", 10) == b""


def test_untrusted_reads(work: Path, tmp_path: Path) -> None:
    (work / "link").symlink_to(tmp_path / "outside")
    (work / "log").write_bytes(b"0123456789")
    assert read_untrusted(work / "link", 10) == b""
    assert read_untrusted(work, 10) == b""
    assert read_untrusted(work / "nope", 10) == b""
    assert read_untrusted(work / "log", 3) == b"789"


def test_listing(folder: WorkFolder, work: Path) -> None:
    (work / "d").mkdir()
    (work / "d/f").write_text("abc")
    (work / "d/l").symlink_to("f")
    assert folder.list("d")[0].size == 3
    assert [(e.name, e.kind) for e in folder.list("d")] == [("f", "file"), ("l", "link")]
    assert [e.name for e in folder.list("d/f")] == ["f"]
    assert [e.kind for e in folder.list(".")] == ["dir"]
    with pytest.raises(FileMissing):
        folder.list("nope")


def test_download_by_offset(folder: WorkFolder, work: Path, uploads: Path) -> None:
    downloads = Downloads()
    (work / "f").write_bytes(b"0123456789")
    transfer = downloads.prepare(KERNEL, folder, uploads, ["f"], archive=False)
    (work / "f").unlink()  # what was prepared can be read to its end
    assert transfer.size == 10
    assert downloads.read(transfer.id, 3, 4) == b"3456"
    assert downloads.read(transfer.id, 8, 100) == b"89"
    assert downloads.read(transfer.id, 10, 100) == b""
    downloads.close_kernel(KERNEL)
    downloads.close(transfer.id)
    with pytest.raises(NotFound):
        downloads.read(transfer.id, 0, 1)


def test_download_expires(folder: WorkFolder, work: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = Downloads()
    (work / "f").write_bytes(b"x")
    transfer = downloads.prepare(KERNEL, folder, uploads, ["f"], archive=False)
    downloads.expire()
    assert downloads.read(transfer.id, 0, 1) == b"x"
    monkeypatch.setattr(transfers, "EXPIRES_AFTER_S", -1.0)
    downloads.expire()
    with pytest.raises(NotFound):
        downloads.read(transfer.id, 0, 1)


def test_archive(folder: WorkFolder, work: Path, uploads: Path) -> None:
    downloads = Downloads()
    (work / "d/e").mkdir(parents=True)
    (work / "d/e/f").write_text("abc")
    (work / "d/link").symlink_to("/etc/passwd")
    os.mkfifo(work / "d/fifo")
    (work / "top").write_text("t")
    transfer = downloads.prepare(KERNEL, folder, uploads, ["d", "top"], archive=True)
    data = downloads.read(transfer.id, 0, transfer.size)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["d", "d/e", "d/e/f", "d/link", "top"]
        assert tar.getmember("d/link").linkname == "/etc/passwd"
        member = tar.extractfile("d/e/f")
        assert member is not None
        assert member.read() == b"abc"
    assert list(uploads.iterdir()) == []
    downloads.close_all()
    with pytest.raises(FileMissing):
        downloads.prepare(KERNEL, folder, uploads, ["top", "nope"], archive=True)
    with pytest.raises(InvalidParameter):
        downloads.prepare(KERNEL, folder, uploads, ["d", "top"], archive=False)


def test_plain_path() -> None:
    assert str(plain_path("/home/work/a//b/../c")) == "a/c"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_every_disk_error_has_a_sentence(number: int) -> None:
    assert "'the/path'" in str(disk_error(OSError(number, os.strerror(number)), "the/path"))

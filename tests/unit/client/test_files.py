"""Files: what goes where, in which requests, and nothing outside of where it may go."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_ray.client import AsyncClient, AsyncSession, _files
from backendai_ray.core.errors import BackendError, FileMissing, InvalidParameter, PathOutsideSession
from tests.support.fake_server import FakeServer


@pytest.fixture
async def session(async_client: AsyncClient) -> AsyncSession:
    return await async_client.sessions.create("python")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("a")
    (root / "deep" / "b é%20.txt").write_text("b")
    (root / "deep" / "er" / "c").write_bytes(bytes(range(256)))
    return root


@pytest.mark.parametrize(
    ("remote", "expected"), [(".", "a.txt"), ("in/", "in/a.txt"), ("in/b.txt", "in/b.txt"), ("", "a.txt")]
)
def test_a_file_goes_where_cp_would_put_it(tree: Path, remote: str, expected: str) -> None:
    assert [p.target for p in _files.plan_upload(tree / "a.txt", remote)] == [expected]


def test_a_folder_goes_where_cp_r_would_put_it(tree: Path) -> None:
    inside = ["a.txt", "deep/b é%20.txt", "deep/er/c"]
    assert [p.target for p in _files.plan_upload(tree, ".")] == [f"data/{name}" for name in inside]
    assert [p.target for p in _files.plan_upload(tree, "x")] == [f"x/{name}" for name in inside]
    assert [p.target for p in _files.plan_upload(tree, "x/")] == [f"x/data/{name}" for name in inside]


def test_what_is_no_file_cannot_be_uploaded(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="nosuch"):
        _files.plan_upload(tmp_path / "nosuch", ".")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidParameter):
        _files.plan_upload(tmp_path / "pipe", ".")
    assert _files.plan_upload(tmp_path, ".") == [], "what is no regular file is left out of a folder"


@given(st.lists(st.integers(0, 2 * _files.BYTES_PER_REQUEST), max_size=100))
def test_requests_are_bounded(sizes: list[int]) -> None:
    planned = [_files.PlannedUpload(Path(str(n)), str(n), size) for n, size in enumerate(sizes)]
    batches = list(_files.in_batches(planned))
    assert [item for batch in batches for item in batch] == planned
    for batch in batches:
        assert 0 < len(batch) <= _files.FILES_PER_REQUEST
        assert len(batch) == 1 or sum(item.size for item in batch) <= _files.BYTES_PER_REQUEST


async def test_there_and_back(session: AsyncSession, server: FakeServer, tree: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    sent = await session.upload(tree, on_progress=lambda done, total: told.append((done, total)))
    assert sent == ["data/a.txt", "data/deep/b é%20.txt", "data/deep/er/c"]
    assert set(server.sessions[session.id].files) == set(sent)
    assert told[-1] == (258, 258)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    back = tmp_path / "back"
    back.mkdir()
    written = await session.download("data", back)
    assert sorted(p.relative_to(back).as_posix() for p in written) == sorted(sent)
    assert (back / "data" / "deep" / "er" / "c").read_bytes() == bytes(range(256))


async def test_several_at_once(session: AsyncSession, tree: Path, tmp_path: Path) -> None:
    assert await session.upload([tree / "a.txt", tree / "deep"], "in") == [
        "in/a.txt",
        "in/deep/b é%20.txt",
        "in/deep/er/c",
    ]
    target = tmp_path / "new" / "folder"
    written = await session.download(["in/a.txt", "in/deep/er/c"], target)
    assert written == [target / "a.txt", target / "c"]


async def test_one_file_under_another_name(session: AsyncSession, tree: Path, tmp_path: Path) -> None:
    await session.upload(tree / "a.txt")
    assert await session.download("a.txt", tmp_path / "b.txt") == [tmp_path / "b.txt"]
    assert (tmp_path / "b.txt").read_text() == "a"


async def test_small_contents_need_no_local_file(session: AsyncSession) -> None:
    await session.write("in/x.txt", "hé")
    await session.write("in/y.bin", b"\x00\xff")
    assert (await session.read("in/x.txt"), await session.read("in/y.bin")) == ("hé".encode(), b"\x00\xff")
    assert [(f.name, f.kind, f.size) for f in await session.ls()] == [("in/x.txt", "file", 3), ("in/y.bin", "file", 2)]
    with pytest.raises(FileMissing):
        await session.read("nosuch")
    with pytest.raises(FileMissing, match="folder"):
        await session.read("in")


async def test_a_lost_upload_is_sent_again_whole(session: AsyncSession, server: FakeServer, tree: Path) -> None:
    server.lose_next_answer()
    server.fail_next(httpx.ConnectError("connection refused"))
    told: list[int] = []
    await session.upload(tree / "deep" / "er" / "c", on_progress=lambda done, total: told.append(done))
    assert server.sessions[session.id].files == {"c": bytes(range(256))}
    assert max(told) == 256, "attempts that failed do not count"


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            content = b"evil" if member.isreg() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../evil")],
        [member("/etc/evil")],
        [member("out/../../evil")],
        [member("other/evil")],
        [member("out/link", tarfile.SYMTYPE, "/etc/passwd")],
        [member("out/link", tarfile.SYMTYPE, "../../x")],
    ],
    ids=["up", "absolute", "up inside", "not asked for", "absolute link", "link out"],
)
def test_a_server_cannot_write_elsewhere(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(PathOutsideSession):
        _files.extract(archive(*members), "out", here)
    assert [p for p in tmp_path.rglob("*") if p.name in ("evil", "x", "link")] == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    here = tmp_path / "here"
    (here / "out").mkdir(parents=True)
    (here / "out" / "file").symlink_to(outside)
    _files.extract(archive(member("out/file")), "out", here)
    assert outside.read_text() == "mine"
    assert (here / "out" / "file").read_bytes() == b"evil"


def test_a_link_in_the_archive_leads_nothing_out(tmp_path: Path) -> None:
    """1. A folder becomes a link to a sibling. 2. A file goes into it. It must stay inside."""
    here = tmp_path / "here"
    here.mkdir()
    inside = archive(member("out/a", tarfile.SYMTYPE, "."), member("out/a/b"))
    _files.extract(inside, "out", here)
    assert (here / "out" / "b").read_bytes() == b"evil"


@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_a_multipart_body_in_pieces_of_any_size(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--bound" in content:
        return
    body = b"--bound\r\nContent-Type: application/x-tar\r\n\r\n" + content + b"\r\n--bound--\r\n"
    out = io.BytesIO()
    part = _files.MultipartTar("bound", out)
    at = 0
    while at < len(body):
        step = cuts[at % len(cuts)]
        part.feed(body[at : at + step])
        at += step
    part.finish()
    assert out.getvalue() == content


def test_a_multipart_body_that_ends_early_is_an_error() -> None:
    part = _files.MultipartTar("bound", io.BytesIO())
    part.feed(b"--bound\r\n\r\nhalf")
    with pytest.raises(BackendError, match="before its end"):
        part.finish()

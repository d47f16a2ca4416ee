"""Full disks, damaged files, servers that go away: a sentence each time, and no half-done change."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from backendai_ray.core.errors import InvalidParameter, StoreUnavailable
from backendai_ray.store import Batch, KernelLog, Store
from tests.support.requirements import missing

from .builders import new_session, submission
from .own_postgres import OwnPostgres


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False)
    if mounted.returncode:
        missing("a small file system cannot be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    async with await Store.open(f"sqlite:///{small_disk / 'store.db'}") as store:
        session = new_session()
        await store.commit(submission(session))
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * 2**20)
        big = KernelLog(kernel_id=session.main.id, session_id=session.id, log=os.urandom(3 * 2**20), at=1.0)
        unlucky = new_session()
        with pytest.raises(StoreUnavailable, match="disk under the store is full") as caught:
            await store.commit(submission(unlucky) + Batch(kernel_logs=(big,)))
        assert "outcome" not in caught.value.details
        assert await store.live_sessions() == [session]
        assert await store.kernel_log(session.main.id) is None
        filler.unlink()
        await store.commit(submission(unlucky))
        assert len(await store.live_sessions()) == 2
        assert [event.number for event in await store.outbox()] == [1, 2]


async def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database, but long enough to be looked at\n" * 200)
    with pytest.raises(StoreUnavailable, match=r"store\.db is not a store, or it is damaged; restore it"):
        await Store.open(f"sqlite:///{tmp_path / 'store.db'}")


async def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with await Store.open(f"sqlite:///{path}") as store:
        for _ in range(20):
            await store.commit(submission(new_session()))
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(1, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    with pytest.raises(StoreUnavailable, match=r"damaged; restore it from a backup"):
        async with await Store.open(f"sqlite:///{path}") as store:
            await store.live_sessions()


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await Store.open(f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}")


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
async def test_urls_that_are_not_understood(url: str) -> None:
    with pytest.raises(InvalidParameter, match=r"store\.url"):
        await Store.open(url)


async def test_a_server_that_is_not_there() -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"the database bai at 127\.0\.0\.1:1 does not answer") as caught:
        await Store.open("postgresql://me:hush@127.0.0.1:1/bai")
    assert "hush" not in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.mark.postgres
@pytest.mark.kill
async def test_a_server_that_goes_away_and_comes_back(own_postgres: OwnPostgres) -> None:
    async with await Store.open(own_postgres.url) as store:
        before = new_session(created_at=1)
        await store.commit(submission(before))
        own_postgres.kill()
        for attempt in (store.commit(submission(new_session())), store.live_sessions()):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await attempt
            assert time.monotonic() - started < 5
            assert "outcome" not in caught.value.details
        own_postgres.start()
        after = new_session(created_at=2)
        await store.commit(submission(after))
        assert await store.live_sessions() == [before, after]
        assert [event.number for event in await store.outbox()] == [1, 2]


@pytest.mark.postgres
async def test_connections_that_are_cut(own_postgres: OwnPostgres) -> None:
    """A restart of the server between two calls is not noticed by the callers."""
    async with await Store.open(own_postgres.url) as store:
        await store.commit(submission(new_session()))
        await asyncio.gather(*(store.live_sessions() for _ in range(8)))
        own_postgres.cut_connections()
        await store.commit(submission(new_session()))
        own_postgres.cut_connections()
        assert len(await store.live_sessions()) == 2


@pytest.mark.postgres
async def test_a_server_that_says_nothing(own_postgres: OwnPostgres) -> None:
    async with await Store.open(own_postgres.url, answer_timeout_s=0.5) as store:
        await store.commit(submission(new_session()))
        own_postgres.freeze()
        started = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable, match="does not answer") as caught:
                await store.commit(submission(new_session()))
            assert caught.value.details == {"outcome": "unknown"}
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await store.live_sessions()
        finally:
            own_postgres.thaw()
        assert time.monotonic() - started < 5
        await store.commit(submission(new_session()))
        assert len(await store.live_sessions()) == 3


class _BreakingConnection:
    """A connection whose COMMIT is carried out, or not, and then breaks."""

    def __init__(self, real: Any, *, carried_out: bool) -> None:
        self._real = real
        self._carried_out = carried_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit(self) -> None:
        if self._carried_out:
            self._real.commit()
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"), connection_invalidated=True)


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_commit_without_an_answer_is_looked_into(store: Store, carried_out: bool) -> None:
    await store.commit(submission(new_session()))
    writer = store._writer
    writer._connection = _BreakingConnection(writer._connection, carried_out=carried_out)  # type: ignore[assignment]
    session = new_session()
    if carried_out:
        await store.commit(submission(session))
    else:
        with pytest.raises(StoreUnavailable) as caught:
            await store.commit(submission(session))
        assert "outcome" not in caught.value.details
    assert (await store.session(session.id) is not None) == carried_out
    await store.commit(submission(new_session()))
    assert [event.number for event in await store.outbox()] == list(range(1, 3 + carried_out))

"""One Manager writes; a killed one leaves at once and everything it acknowledged stays."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.store import Store
from backendai_ray.store.engines import Location, writer_engine
from tests.support.waiting import wait_until_async

from .builders import new_session, submission


@contextmanager
def _loading(url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.store.load_process", url], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


@pytest.mark.kill
async def test_all_that_was_acknowledged_survives_a_kill(store_url: str) -> None:
    with _loading(store_url) as process:
        assert process.stdout is not None
        acknowledged: list[str] = []
        assert process.stdout.readline() == "ready\n"
        while len(acknowledged) < 300:
            acknowledged.append(process.stdout.readline().strip())
        process.kill()
        killed_at = time.monotonic()
        acknowledged += [line.strip() for line in process.stdout if len(line) == 37]
        store = await Store.open(store_url)
        took_over_s = time.monotonic() - killed_at
    async with store:
        stored = {session.id for session in await store.live_sessions()}
        assert not set(acknowledged) - stored
        events = await store.outbox(limit=100_000)
        assert [event.number for event in events] == list(range(1, len(stored) + 1))
        await store.commit(submission(new_session()))
    assert took_over_s < 2  # 0.03 s on an idle machine


async def test_a_second_manager_waits_and_then_gives_up(store_url: str) -> None:
    async with await Store.open(store_url) as first:
        with pytest.raises(StoreUnavailable, match="another Manager"):
            await Store.open(store_url, takeover_wait_s=0.1)
        waiting = asyncio.create_task(Store.open(store_url, takeover_wait_s=20))
        await first.commit(submission(new_session()))
        assert not waiting.done()
    async with await waiting as second:
        await second.commit(submission(new_session()))
        assert len(await second.live_sessions()) == 2


async def test_a_writer_that_was_pushed_aside_writes_nothing_more(store_url: str) -> None:
    """Should the lock ever fail (a file system without locks), the fence inside the data still holds."""
    async with await Store.open(store_url) as store:
        await store.commit(submission(new_session()))
        engine = writer_engine(Location.parse(store_url))
        with engine.begin() as connection:
            connection.execute(text("UPDATE meta SET writer = 'somebody else'"))
        engine.dispose()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="taken the store over"):
                await store.commit(submission(new_session()))
        assert len(await store.live_sessions()) == 1
        assert len(await store.outbox()) == 1


async def test_many_stores_one_after_the_other(store_url: str) -> None:
    for count in range(5):
        async with await Store.open(store_url) as store:
            await store.commit(submission(new_session()))

            async def is_there(expected: int = count + 1, at: Store = store) -> bool:
                return len(await at.live_sessions()) == expected

            await wait_until_async(is_there)

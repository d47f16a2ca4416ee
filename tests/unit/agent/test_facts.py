"""News get to the Manager in spite of everything, the newest of each kernel, and no start is skipped over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent import facts
from actors.agent.facts import FactQueue
from actors.agent.testing.fakes import RecordingManager
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import Status
from tests.support.waiting import wait_until_async

A, B = KernelId("a"), KernelId("b")


def fact(kernel: KernelId, status: Status, *, attempt: int = 1) -> KernelFact:
    return KernelFact(kernel_id=kernel, session_id="s", status=status, attempt=attempt)


async def until_empty(queue: FactQueue) -> None:
    async def is_empty() -> bool:
        return queue.is_empty()

    await wait_until_async(is_empty, interval_s=0.001)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(facts, "LAST_RETRY_S", 0.002)


@pytest.fixture
def manager() -> RecordingManager:
    return RecordingManager()


@pytest.fixture
async def queue(manager: RecordingManager) -> AsyncIterator[FactQueue]:
    queue = FactQueue(AgentId("n"), "1", manager)
    sender = asyncio.create_task(queue.run())
    yield queue
    sender.cancel()


async def test_progress_is_told_once_in_its_newest_form(queue: FactQueue, manager: RecordingManager) -> None:
    for status in (Status.PREPARING, Status.PULLING, Status.CREATING):
        queue.put(fact(A, status))
    await until_empty(queue)
    assert manager.statuses(A) == [Status.CREATING]


async def test_a_start_is_told_before_the_end_that_followed(queue: FactQueue, manager: RecordingManager) -> None:
    for status in (Status.CREATING, Status.RUNNING, Status.TERMINATED):
        queue.put(fact(A, status))
    await until_empty(queue)
    assert manager.statuses(A) == [Status.RUNNING, Status.TERMINATED]


async def test_what_is_not_taken_is_repeated(queue: FactQueue, manager: RecordingManager) -> None:
    manager.error = StoreUnavailable()
    queue.put(fact(A, Status.RUNNING))
    queue.put(fact(B, Status.RUNNING))
    await manager.until(lambda: manager.refused >= 3)
    queue.put(fact(A, Status.TERMINATED))
    manager.error = None
    await until_empty(queue)
    assert (manager.statuses(A), manager.statuses(B)) == ([Status.RUNNING, Status.TERMINATED], [Status.RUNNING])


async def test_a_new_attempt_replaces_what_was_waiting_of_the_old_one(
    queue: FactQueue, manager: RecordingManager
) -> None:
    queue.put(fact(A, Status.RUNNING))
    queue.put(fact(A, Status.CREATING, attempt=2))
    await until_empty(queue)
    assert [(f.status, f.attempt) for f in manager.facts] == [(Status.CREATING, 2)]


_STATUSES = st.sampled_from([Status.CREATING, Status.RUNNING, Status.TERMINATED])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), _STATUSES, st.booleans()), max_size=20))
def test_the_last_word_always_arrives(said: list[tuple[KernelId, Status, bool]]) -> None:
    """Whatever is put while the Manager comes and goes, the newest fact of each kernel is the last one told."""

    async def scenario() -> None:
        manager = RecordingManager()
        queue = FactQueue(AgentId("n"), "1", manager)
        sender = asyncio.create_task(queue.run())
        newest = {}
        for kernel, status, is_away in said:
            manager.error = StoreUnavailable() if is_away else None
            queue.put(fact(kernel, status))
            newest[kernel] = status
            await asyncio.sleep(0)
        manager.error = None
        await until_empty(queue)
        assert {kernel: manager.statuses(kernel)[-1] for kernel in newest} == newest
        sender.cancel()

    asyncio.run(scenario())

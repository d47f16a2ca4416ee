"""What the scheduler tells sessions is kept: each reason once, bounded, over restarts, and beside everything else."""

from __future__ import annotations

import pytest

from actors.manager.chronicle import SENTENCE_EVERY_S
from actors.testing import GROUP, FakeCluster
from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import Placement, Plan, Refusal, RefusalCode
from backendai_ray.core.scheduling_history import KEPT, Verdict
from backendai_ray.core.sessions import Session, Status


async def refuse(
    cluster: FakeCluster, session: Session, code: RefusalCode = RefusalCode.NOT_ENOUGH, message: str = "no room"
) -> None:
    """Let a pass refuse a session, and time go on a little."""
    await cluster.manager.apply(GROUP, Plan(refusals=(Refusal(session.id, code, message),)), pass_id="p")
    cluster.clock.advance(1)


async def told(cluster: FakeCluster, session: Session) -> list[tuple[str, str]]:
    entries = await cluster.manager.scheduling_history(session.id)
    assert [entry.number for entry in entries] == sorted({entry.number for entry in entries})
    return [(entry.code, entry.message) for entry in entries]


async def flush(cluster: FakeCluster) -> None:
    assert cluster.manager._parts is not None
    await cluster.manager._parts.chronicle.flush()


async def test_a_reason_is_noted_when_it_changes(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    for code in (RefusalCode.NOT_ENOUGH, RefusalCode.NOT_ENOUGH, RefusalCode.BEHIND_HEAD, RefusalCode.NOT_ENOUGH):
        await refuse(cluster, session, code)
        await flush(cluster)
    assert [code for code, _ in await told(cluster, session)] == [
        "not-enough",
        "behind-the-head-of-the-queue",
        "not-enough",
    ]
    first, *_ = await cluster.manager.scheduling_history(session.id)
    assert (first.verdict, first.cause) == (Verdict.REFUSED, "p")
    assert first.at == pytest.approx(session.created_at, abs=0.5)


async def test_a_sentence_that_changes_quickly_is_noted_once_a_minute(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    for number in range(10):
        await refuse(cluster, session, message=f"short by {number}")
        await flush(cluster)
    assert await told(cluster, session) == [("not-enough", "short by 0")]
    cluster.clock.advance(SENTENCE_EVERY_S)
    await flush(cluster)
    assert await told(cluster, session) == [("not-enough", "short by 0"), ("not-enough", "short by 9")]


async def test_a_sentence_that_comes_back_is_no_news(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    for message in ("one", "two", "one"):
        await refuse(cluster, session, message=message)
        await flush(cluster)
    cluster.clock.advance(SENTENCE_EVERY_S)
    await flush(cluster)
    assert await told(cluster, session) == [("not-enough", "one")]


async def test_what_is_asked_for_is_up_to_date(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await refuse(cluster, session, message="not saved yet")
    assert not cluster.store.scheduling
    assert await told(cluster, session) == [("not-enough", "not saved yet")]


async def test_a_placement_that_was_not_taken_is_noted(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await cluster.manager.apply(GROUP, Plan(placements=(Placement(session.id, 99, ()),)), pass_id="p7")
    [entry] = await cluster.manager.scheduling_history(session.id)
    assert (entry.verdict, entry.code, entry.cause) == (Verdict.REJECTED, "placement-rejected", "p7")
    assert entry.message == "the session has changed since the plan was made"


async def test_only_the_last_entries_are_kept(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    codes = [RefusalCode.NOT_ENOUGH, RefusalCode.BEHIND_HEAD]
    for number in range(2 * KEPT):
        await refuse(cluster, session, codes[number % 2])
        await flush(cluster)
    entries = await cluster.manager.scheduling_history(session.id)
    assert [entry.number for entry in entries] == list(range(KEPT + 1, 2 * KEPT + 1))


async def test_it_survives_a_restart_and_goes_on(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await refuse(cluster, session)
    await flush(cluster)
    cluster.clock.advance(10)
    await cluster.restart()
    await refuse(cluster, session)  # Sokovan tells everything to a new Manager
    await refuse(cluster, session, RefusalCode.QUOTA, "too many")
    assert await told(cluster, session) == [("not-enough", "no room"), ("quota", "too many")]


async def test_a_store_that_is_away_costs_nothing_but_time(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await refuse(cluster, session)
    cluster.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await flush(cluster)
    await refuse(cluster, session, RefusalCode.QUOTA, "too many")
    cluster.store.is_away = False
    cluster.store.forgets_to_answer = 1
    with pytest.raises(StoreUnavailable):
        await flush(cluster)
    assert await told(cluster, session) == [("not-enough", "no room"), ("quota", "too many")]


async def test_a_session_that_is_no_more_takes_only_its_own_notes_with_it(cluster: FakeCluster) -> None:
    gone, stays = (await cluster.submit()).session, (await cluster.submit()).session
    await refuse(cluster, gone)
    await refuse(cluster, stays)
    del cluster.store.records[gone.id]
    await flush(cluster)
    await flush(cluster)
    assert {entry.session_id for entry in cluster.store.scheduling.values()} == {stays.id}


async def test_ten_thousand_notes_are_few_commits(cluster: FakeCluster) -> None:
    sessions = [(await cluster.submit()).session for _ in range(500)]
    commits = len(cluster.store.commits)
    refusals = tuple(Refusal(session.id, RefusalCode.BEHIND_HEAD, "behind") for session in sessions)
    for _ in range(20):
        await cluster.manager.apply(GROUP, Plan(refusals=refusals), pass_id="p")
    await flush(cluster)
    assert len(cluster.store.commits) - commits == 3
    assert len(cluster.store.scheduling) == 500


async def test_what_is_not_there_is_not_noted_and_what_has_ended_is_forgotten(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await refuse(cluster, session)
    nobody = Refusal(SessionId("nobody"), RefusalCode.NOT_ENOUGH, "")
    await cluster.manager.apply(GROUP, Plan(refusals=(nobody,)), pass_id="p")
    await flush(cluster)
    await cluster.terminate(session)
    await flush(cluster)
    assert cluster.manager._parts is not None
    assert not cluster.manager._parts.chronicle._last
    assert await told(cluster, session) == [("not-enough", "no room")], "it can still be read"
    assert (await cluster.get(session.id)).status is Status.CANCELLED


async def test_old_notes_are_swept(cluster: FakeCluster) -> None:
    session = (await cluster.submit()).session
    await refuse(cluster, session)
    await flush(cluster)
    cluster.clock.advance(cluster.settings.manager.scheduling_history_keep_s + 700)
    await cluster.heartbeat()
    await cluster.manager.tick()
    assert await told(cluster, session) == []

"""What the store answers, and that it does not read everything to do so."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from backendai_ray.core.errors import Conflict, InvalidParameter
from backendai_ray.core.ids import AccessKey, AgentId, SessionId
from backendai_ray.core.scheduling_history import KEPT, SchedulingEntry, Verdict
from backendai_ray.core.sessions import Session, Status
from backendai_ray.store import Batch, Store
from backendai_ray.store.engines import Location, writer_engine

from .builders import OWNER, ended, new_session, placed


async def _commit(store: Store, *sessions: Session) -> None:
    await store.commit(Batch(sessions=sessions))


def _with_id(session: Session, session_id: str) -> Session:
    return replace(session, spec=replace(session.spec, id=SessionId(session_id)))


async def test_a_name_means_the_live_session_else_the_last_ended(store: Store) -> None:
    older, newer = new_session("job", created_at=1), new_session("job", created_at=2)
    await _commit(store, older, ended(older))
    await _commit(store, newer)
    assert await store.find(OWNER, "job") == newer
    await _commit(store, ended(newer))
    assert await store.find(OWNER, "job") == ended(newer)
    alive = new_session("job", created_at=0)
    await _commit(store, alive)
    assert await store.find(OWNER, "job") == alive


async def test_an_id_or_its_beginning(store: Store) -> None:
    one = _with_id(new_session(), "aaaaaaaa-0000-4000-8000-000000000001")
    two = _with_id(new_session(), "aaaaaaaa-0000-4000-8000-000000000002")
    other = _with_id(new_session(), "bbbbbbbb-0000-4000-8000-000000000003")
    await _commit(store, one, two, other)
    assert await store.find(OWNER, one.id) == one
    assert await store.find(OWNER, two.id.upper()) == two
    assert await store.find(OWNER, "bbbbbbbb") == other
    assert await store.find(OWNER, "bbbbbbb") is None
    assert await store.find(OWNER, "aaaaaaaa-0000-4000-8000-000000000001f") is None
    with pytest.raises(InvalidParameter, match="several sessions"):
        await store.find(OWNER, "aaaaaaaa-0000")


@pytest.mark.parametrize("text", ["", "nope", "nope\0", "\udcff", "%", "________", "12345678", "x' OR 1=1"])
async def test_nothing_is_found_by_nonsense(store: Store, text: str) -> None:
    await _commit(store, new_session("job"))
    assert await store.find(OWNER, text) is None


async def test_nobody_finds_another_ones_session(store: Store) -> None:
    session = new_session("job")
    await _commit(store, session)
    for text in ("job", session.id, session.id[:8]):
        assert await store.find(AccessKey("AKIAOTHER"), text) is None
        assert await store.find(None, text) == session


async def test_pages_newest_first(store: Store) -> None:
    mine = [new_session(f"n{n}", created_at=n, size=2) for n in range(25)]
    theirs = new_session("theirs", owner="AKIAOTHER", created_at=30)
    await _commit(store, *mine, theirs)
    done = [ended(session) for session in mine[:10]]
    running = [placed(session) for session in mine[10:15]]
    await _commit(store, *done, *running)
    newest = [*reversed(done + running + mine[15:])]
    assert await store.page(OWNER, (), 10, 0) == (newest[:10], 25)
    assert await store.page(OWNER, (), 10, 20) == (newest[20:], 25)
    assert await store.page(OWNER, (), 10, 25) == ([], 25)
    assert await store.page(OWNER, (), 0, 0) == ([], 25)
    assert await store.page(None, (), 1, 0) == ([theirs], 26)
    assert await store.page(OWNER, ("TERMINATED",), 3, 0) == (done[:6:-1], 10)
    assert await store.page(None, ("RUNNING", "PENDING"), 2, 0) == ([theirs, mine[24]], 16)
    assert await store.page(OWNER, ("CANCELLED",), 5, 0) == ([], 0)


async def test_what_is_on_a_node(store: Store) -> None:
    here, there, over = (placed(new_session(size=2), agent) for agent in ("node-1", "node-2", "node-1"))
    await _commit(store, here, there, over)
    await _commit(store, ended(over))
    found = await store.kernels_on(AgentId("node-1"), [Status.RUNNING, Status.TERMINATING])
    assert {(session_id, kernel.id) for session_id, kernel in found} == {(here.id, k.id) for k in here.kernels}
    assert await store.kernel_session(there.main.id) == there.id
    assert await store.kernel_session(str(uuid.uuid4())) is None  # type: ignore[arg-type]


async def test_what_ended_last(store: Store) -> None:
    sessions = [new_session(created_at=float(number)) for number in range(5)]
    await _commit(store, *sessions)
    for session in sessions[:4]:
        await _commit(store, ended(session))
    found = await store.recently_ended(3)
    assert [session.id for session in found] == [session.id for session in (sessions[3], sessions[2], sessions[1])]
    assert all(session.is_terminal for session in found)


async def test_what_the_scheduler_told_is_bounded_and_goes_with_its_session(store: Store, store_url: str) -> None:
    first, second = new_session(), new_session()
    await _commit(store, first, second)

    def entry(session: Session, number: int, message: str = "no \0 room") -> SchedulingEntry:
        return SchedulingEntry(
            session_id=session.id,
            number=number,
            verdict=Verdict.REFUSED,
            code="not-enough",
            message=message,
            at=float(number),
            cause="p",
        )

    await store.commit(Batch(scheduling=tuple(entry(first, number) for number in range(1, KEPT + 3))))
    await store.commit(Batch(scheduling=(entry(second, 1), entry(second, 2), entry(second, 2, "again"))))
    kept = await store.scheduling_history(first.id)
    assert [one.number for one in kept] == list(range(3, KEPT + 3))
    messages = [one.message for one in await store.scheduling_history(second.id)]
    assert messages == ["no \N{REPLACEMENT CHARACTER} room", "again"]
    tails = await store.last_scheduling([first.id, second.id, "nobody"])
    assert {name: one.number for name, one in tails.items()} == {first.id: KEPT + 2, second.id: 2}
    with pytest.raises(Conflict, match="unknown session"):
        await store.commit(Batch(scheduling=(entry(new_session(), 1),)))
    assert await store.sweep_scheduling(2.0) == 1
    await store.close()
    engine = writer_engine(Location.parse(store_url))
    with engine.begin() as connection:
        connection.execute(sql("DELETE FROM kernels"))
        connection.execute(sql("DELETE FROM history"))
        connection.execute(sql("DELETE FROM sessions WHERE id = :id"), {"id": first.id})
        left = connection.execute(sql("SELECT DISTINCT session_id FROM scheduling_history")).scalars().all()
    engine.dispose()
    assert left == [second.id]


async def test_dependencies_both_ways(store: Store) -> None:
    first = new_session()
    second = new_session(depends_on=(first.id, first.id))
    third = new_session(depends_on=tuple(sorted((first.id, second.id))))
    await _commit(store, first, second, third)
    assert await store.dependencies(third.id) == sorted((first.id, second.id))
    assert await store.dependents(first.id) == sorted((second.id, third.id))
    assert await store.dependencies(first.id) == []


async def test_listings_use_an_index(tmp_path: Path) -> None:
    """A page of a large store must not read the whole of it: SQLite's plan has neither a scan nor a sort."""
    statements: list[str] = []
    async with await Store.open(f"sqlite:///{tmp_path / 'store.db'}", pool_size=1) as store:
        connection = sqlite3.connect(tmp_path / "store.db")
        await _commit(store, *(new_session() for _ in range(5)))
        with store._engine.connect() as reader:
            reader.connection.dbapi_connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
        for owner in (OWNER, None):
            for statuses in ((), ("RUNNING", "PENDING"), ("TERMINATED",)):
                await store.page(owner, statuses, 2, 0)
        await store.live_sessions()
        await store.find(OWNER, "12345678")
        await store.history("x")
        await store.kernels_on(AgentId("node-1"), [Status.RUNNING])
        await store.outbox(after=2)
    queries = [text for text in statements if text.startswith("SELECT") and "COUNT" not in text.upper()]
    assert len(queries) > 12
    for query in queries:
        plan = " / ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
        scans = [
            step for step in plan.split(" / ") if step.startswith("SCAN") and "INDEX" not in step and "meta" not in step
        ]
        assert not scans, (plan, query)
        if "sessions.name = " in query:
            assert "_name" in plan, (plan, query)
        # Sorting ids that an index found, or the few rows of one name or of a page, is fine; sorting documents is not.
        if "sessions.document" in query and "TEMP B-TREE" in plan:
            assert "_name" in plan or "sessions.id IN" in query, (plan, query)
    connection.close()

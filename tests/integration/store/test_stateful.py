"""The store against a model that is a few dicts: whatever is committed, refused, closed and opened, they agree."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from backendai_ray.core.errors import Conflict, NameInUse
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Session, Status
from backendai_ray.store import Batch, Store

from .builders import change, ended, new_session, placed

NAMES = st.sampled_from(["a", "b", "c"])
OWNERS = st.sampled_from(["AKIAONE", "AKIATWO"])
INDEX = st.integers(0, 30)


class Model:
    """What the store should hold."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.events: list[StatusChange] = []

    def commit(self, batch: Batch) -> type[Exception] | None:
        after = dict(self.sessions)
        for session in batch.sessions:
            if session.id in after and session.version <= after[session.id].version:
                return Conflict
            rivals = [
                other
                for other in after.values()
                if other.id != session.id
                and not other.is_terminal
                and (other.spec.access_key, other.spec.name) == (session.spec.access_key, session.spec.name)
            ]
            if rivals and not session.is_terminal:
                return NameInUse
            after[session.id] = session
        self.sessions = after
        self.events += batch.changes
        return None


class StoreMachine(RuleBasedStateMachine):
    """Commits in groups of random batches, good and bad."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.known: list[Session] = []
        self.waiting: list[Batch] = []
        self.store = self.run(Store.open(self.url))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()

    @initialize()
    def a_fresh_store(self) -> None:
        assert self.run(self.store.page(None)) == ([], 0)

    @rule(name=NAMES, owner=OWNERS, size=st.integers(1, 3))
    def submit(self, name: str, owner: str, size: int) -> None:
        session = new_session(name, owner=owner, size=size, created_at=float(len(self.known)))
        self.known.append(session)
        self.waiting.append(Batch(sessions=(session,), changes=(change(session, Status.PENDING),)))

    @rule(index=INDEX, how=st.sampled_from([placed, ended]), name=st.none() | NAMES)
    def move_on(self, index: int, how: Any, name: str | None) -> None:
        if not self.known:
            return
        before = self.known[index % len(self.known)]
        after = how(before)
        if name is not None:
            after = replace(after, spec=replace(after.spec, name=name))
        self.known[index % len(self.known)] = after
        self.waiting.append(Batch(sessions=(after,), changes=(change(after, before.status),)))

    @rule(index=INDEX)
    def repeat_an_old_version(self, index: int) -> None:
        if self.known:
            stale = self.known[index % len(self.known)]
            self.waiting.append(Batch(sessions=(stale,), changes=(change(stale, stale.status, "stale"),)))

    @rule()
    def join_the_last_two(self) -> None:
        if len(self.waiting) >= 2:
            self.waiting[-2:] = [self.waiting[-2] + self.waiting[-1]]

    @rule()
    def commit_what_waits(self) -> None:
        batches, self.waiting = self.waiting, []

        async def commit() -> list[Any]:
            return await asyncio.gather(*(self.store.commit(b) for b in batches), return_exceptions=True)

        results = self.run(commit())
        expected = [self.model.commit(batch) for batch in batches]
        assert [None if result is None else type(result) for result in results] == expected

    @rule()
    def open_again(self) -> None:
        self.run(self.store.close())
        self.store = self.run(Store.open(self.url))

    @rule(index=INDEX, owner=OWNERS, name=NAMES)
    def look_up(self, index: int, owner: str, name: str) -> None:
        if self.known:
            wanted = self.known[index % len(self.known)].id
            assert self.run(self.store.session(wanted)) == self.model.sessions.get(wanted)
        mine = [s for s in self.model.sessions.values() if (s.spec.access_key, s.spec.name) == (owner, name)]
        best = max(mine, key=lambda s: (not s.is_terminal, s.created_at, s.id), default=None)
        assert self.run(self.store.find(owner, name)) == best

    @invariant()
    def they_agree(self) -> None:
        newest_first = sorted(self.model.sessions.values(), key=lambda s: (s.created_at, s.id), reverse=True)
        live = [session for session in reversed(newest_first) if not session.is_terminal]
        assert self.run(self.store.live_sessions()) == live
        assert self.run(self.store.page(None, (), 3, 1)) == (newest_first[1:4], len(newest_first))
        events = self.run(self.store.outbox(limit=1000))
        assert [event.change for event in events] == self.model.events
        assert [event.number for event in events] == list(range(1, len(events) + 1))


SETTINGS = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_against_the_model_on_sqlite(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"  # copied for each run: migrating takes longer than the rest
    _make_store(f"sqlite:///{empty}")
    numbers = count()

    class OnSqlite(StoreMachine):
        def __init__(self) -> None:
            self.path = tmp_path / f"store-{next(numbers)}.db"
            shutil.copyfile(empty, self.path)
            self.url = f"sqlite:///{self.path}"
            super().__init__()

    run_state_machine_as_test(OnSqlite, settings=SETTINGS)


@pytest.mark.postgres
def test_against_the_model_on_postgres(postgres_url: str) -> None:
    _make_store(postgres_url)

    class OnPostgres(StoreMachine):
        url = postgres_url

        def __init__(self) -> None:
            with psycopg.connect(postgres_url, autocommit=True) as connection:
                connection.execute("TRUNCATE sessions, kernels, dependencies, history, scheduling_history, kernel_logs")
                connection.execute("UPDATE meta SET identity = '', commits = 0, last_event = 0, shipped_event = 0")
            super().__init__()

    run_state_machine_as_test(OnPostgres, settings=settings(SETTINGS, max_examples=6))


def _make_store(url: str) -> None:
    async def make() -> None:
        await (await Store.open(url)).close()

    asyncio.run(make())

"""What a commit guarantees: everything or nothing, versions, names, keys, groups."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from backendai_ray.core.errors import (
    BadRequest,
    Conflict,
    IdempotencyMismatch,
    InternalError,
    NameInUse,
    StoreUnavailable,
)
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.quotas import Limits, Scope, ScopeKind
from backendai_ray.core.sessions import Status
from backendai_ray.core.usage import Charge
from backendai_ray.store import (
    AgentRecord,
    Batch,
    GroupRecord,
    IdempotencyRecord,
    KernelLog,
    KeypairRecord,
    QuotaRecord,
    Store,
    UsageRecord,
)

from .builders import OWNER, change, ended, new_session, placed, submission


async def test_a_session_comes_back_as_it_was(store: Store) -> None:
    session = new_session("first", size=3, tag="t", depends_on=())
    await store.commit(submission(session))
    assert await store.session(session.id) == session
    running = placed(session)
    await store.commit(Batch(sessions=(running,), changes=(change(running, Status.PENDING),)))
    assert await store.session(session.id) == running
    assert await store.live_sessions() == [running]


async def test_history_and_outbox_are_one(store: Store) -> None:
    session = new_session("first")
    running = placed(session)
    changes = (change(running, Status.PENDING, "a\0b", kernel=0), change(running, Status.PENDING, "c\udcff"))
    await store.commit(submission(session) + Batch(sessions=(running,), changes=changes))
    lines = await store.history(session.id)
    assert [(line.kernel_id, line.message) for line in lines] == [
        (None, "submitted"),
        (session.main.id, "a\N{REPLACEMENT CHARACTER}b"),
        (None, "c?"),
    ]
    events = await store.outbox()
    assert [event.change for event in events] == lines
    assert [event.number for event in events] == [1, 2, 3]
    assert {(e.access_key, e.session_name, e.domain, e.project) for e in events} == {
        (OWNER, "first", "default", "default")
    }


async def test_trimmed_events_do_not_come_back_and_numbers_go_on(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        await store.commit(submission(new_session()))
        await store.commit(submission(new_session()))
        await store.trim_outbox(1)
        assert [event.number for event in await store.outbox()] == [2]
        await store.trim_outbox(2)
        await store.trim_outbox(1)
        assert await store.outbox() == []
    async with await Store.open(store_url) as store:
        assert await store.outbox() == []
        session = new_session()
        await store.commit(submission(session))
        assert [event.number for event in await store.outbox()] == [3]
        assert [event.number for event in await store.outbox(after=3)] == []
        assert len(await store.history(session.id)) == 1


async def test_a_change_may_be_of_a_stored_session(store: Store) -> None:
    session = new_session("first")
    await store.commit(submission(session))
    await store.commit(Batch(changes=(change(session, Status.PENDING, "again"),)))
    assert (await store.outbox())[-1].session_name == "first"
    with pytest.raises(Conflict, match="unknown session"):
        await store.commit(Batch(changes=(change(new_session(), Status.PENDING),)))


async def test_a_version_that_is_not_newer_is_refused(store: Store) -> None:
    session = new_session("first")
    await store.commit(submission(session))
    for version in (0, -1):
        with pytest.raises(Conflict, match="not newer") as caught:
            await store.commit(submission(replace(session, version=version, message="stale")))
        assert caught.value.details == {"session_id": session.id, "stored": 0, "version": version}
    assert await store.session(session.id) == session
    assert len(await store.history(session.id)) == 1


async def test_a_live_name_is_taken_once(store: Store) -> None:
    first = new_session("same")
    await store.commit(submission(first))
    with pytest.raises(NameInUse) as caught:
        await store.commit(submission(new_session("same")))
    assert caught.value.details["session_id"] == first.id
    await store.commit(submission(new_session("same", owner="AKIAOTHER")))
    await store.commit(Batch(sessions=(ended(first),)))
    await store.commit(submission(new_session("same")))


async def test_a_name_is_free_again_within_the_group_and_the_batch(store: Store) -> None:
    first, second = new_session("same"), new_session("same")
    await store.commit(Batch(sessions=(first, ended(first), second)))
    third = new_session("same")
    await asyncio.gather(
        store.commit(Batch(sessions=(ended(second),))),
        store.commit(Batch(sessions=(third,))),
    )
    assert await store.live_sessions() == [third]


async def test_names_can_be_swapped(store: Store) -> None:
    def named(session, name, version):  # type: ignore[no-untyped-def]
        return replace(session, spec=replace(session.spec, name=name), version=version)

    a, b = new_session("a", created_at=1), new_session("b", created_at=2)
    await store.commit(Batch(sessions=(a, b)))
    swapped = (named(a, "c", 1), named(b, "a", 1), named(a, "b", 2))
    await asyncio.gather(*(store.commit(Batch(sessions=(session,))) for session in swapped))
    assert [s.spec.name for s in await store.live_sessions()] == ["b", "a"]


async def test_a_batch_fails_alone_in_its_group(store: Store) -> None:
    taken = new_session("taken")
    await store.commit(submission(taken))
    good = [new_session(f"good-{n}") for n in range(50)]
    bad = new_session("taken")
    half = new_session("half")
    unstorable = new_session("unstorable", startup_command="\ud800")
    batches = [submission(session) for session in good]
    batches[10:10] = [submission(bad)]
    batches[20:20] = [Batch(sessions=(half, replace(taken, version=0)))]
    batches[30:30] = [submission(unstorable)]
    results = await asyncio.gather(*(store.commit(batch) for batch in batches), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [NameInUse, Conflict, InternalError]
    assert {s.spec.name for s in await store.live_sessions()} == {"taken", *(s.spec.name for s in good)}
    numbers = [event.number for event in await store.outbox()]
    assert numbers == list(range(1, 52))


async def test_an_idempotency_key_is_used_once(store: Store) -> None:
    session = new_session()
    record = IdempotencyRecord(
        access_key=OWNER,
        key="k",
        fingerprint="f",
        session_id=session.id,
        answer='{"x":1}',
        created_at=10,
        expires_at=20,
    )
    await store.commit(submission(session) + Batch(idempotency=(record,)))
    assert await store.idempotent(OWNER, "k") == record
    again = new_session()
    with pytest.raises(Conflict) as caught:
        await store.commit(submission(again) + Batch(idempotency=(replace(record, session_id=again.id),)))
    assert caught.value.details["session_id"] == session.id
    with pytest.raises(IdempotencyMismatch):
        await store.commit(Batch(idempotency=(replace(record, fingerprint="other"),)))
    assert await store.session(again.id) is None
    later = replace(record, created_at=20, expires_at=30, session_id=again.id)
    await store.commit(submission(again) + Batch(idempotency=(later,)))
    assert await store.idempotent(OWNER, "k") == later
    assert await store.sweep_idempotency(29) == 0
    assert await store.sweep_idempotency(30) == 1
    assert await store.idempotent(OWNER, "k") is None


async def test_two_uses_of_a_key_at_the_same_time(store: Store) -> None:
    sessions = [new_session() for _ in range(8)]
    records = [
        IdempotencyRecord(access_key=OWNER, key="k", fingerprint="f", session_id=s.id, created_at=1, expires_at=9)
        for s in sessions
    ]
    results = await asyncio.gather(
        *(store.commit(submission(s) + Batch(idempotency=(r,))) for s, r in zip(sessions, records, strict=True)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), *[Conflict] * 7]
    assert await store.live_sessions() == sessions[:1]


async def test_usage_adds_up_within_a_batch_within_a_transaction_and_over_transactions(store: Store) -> None:
    def used(hour: int, amount: float, slot: str = "cpu") -> UsageRecord:
        return UsageRecord(resource_group=ResourceGroupName("g"), charge=Charge(("d", "p", "u"), slot, hour, amount))

    await store.commit(Batch(usage=(used(3600, 1.5), used(3600, 2.0), used(7200, 1.0), used(3600, 7.0, "mem"))))
    await asyncio.gather(*(store.commit(Batch(usage=(used(3600, 0.25),))) for _ in range(4)))
    expected = [used(3600, 4.5), used(7200, 1.0), used(3600, 7.0, "mem")]
    assert await store.usage(0) == expected
    assert await store.usage(7300) == [expected[1]]
    taken = new_session()
    await store.commit(Batch(sessions=(taken,)))
    with pytest.raises(Conflict):
        await store.commit(Batch(sessions=(taken,), usage=(used(3600, 100.0),)))
    assert await store.usage(0) == expected
    assert await store.sweep_usage(7200) == 2
    assert await store.usage(0) == [expected[1]]


async def test_quotas_are_replaced_and_removed(store: Store) -> None:
    user, project = Scope(ScopeKind.USER, "alice@example.com"), Scope(ScopeKind.PROJECT, "default/ml")
    one = QuotaRecord(scope=user, limits=Limits(slots={"cpu": 0, "mem": 2**40}, sessions=3))
    two = QuotaRecord(scope=project, limits=Limits(pending=5))
    await store.commit(Batch(quotas=(one, two)))
    assert await store.quotas() == [two, one]
    await store.commit(Batch(quotas=(replace(one, limits=Limits(sessions=4)), replace(two, limits=Limits()))))
    assert await store.quotas() == [replace(one, limits=Limits(sessions=4))]


async def test_the_smaller_records(store: Store) -> None:
    keypair = KeypairRecord(access_key=OWNER, secret_key="hush", user="u", is_admin=True, created_at=5)
    agent = AgentRecord(
        agent_id=AgentId("node-1"),
        resource_group=ResourceGroupName("default"),
        first_contact=1.5,
        incarnation="i",
        capacity={"cpu": 2000},
    )
    group = GroupRecord(
        name=ResourceGroupName("default"), policy="fifo", selection="concentrated", options={"depth": [1, None, "x"]}
    )
    await store.commit(Batch(keypairs=(keypair,), agents=(agent,), groups=(group,)))
    assert await store.keypair(OWNER) == keypair
    assert await store.keypair("AKIANOBODY") is None
    assert await store.keypairs() == [keypair]
    assert await store.agents() == [agent]
    assert await store.groups() == [group]
    assert "hush" not in repr(keypair)
    await store.commit(
        Batch(
            keypairs=(replace(keypair, is_active=False),),
            agents=(replace(agent, lost_at=7.0),),
            groups=(replace(group, policy="lifo"),),
        )
    )
    assert await store.keypairs() == [replace(keypair, is_active=False)]
    assert await store.agents() == [replace(agent, lost_at=7.0)]
    assert await store.groups() == [replace(group, policy="lifo")]


async def test_kernel_logs(store: Store) -> None:
    session = new_session()
    log = KernelLog(kernel_id=session.main.id, session_id=session.id, log=b"\x00\xff out", at=3.0)
    await store.commit(submission(session) + Batch(kernel_logs=(log,)))
    assert await store.kernel_log(session.main.id) == b"\x00\xff out"
    await store.commit(Batch(kernel_logs=(replace(log, log=b"more"),)))
    assert await store.kernel_log(session.main.id) == b"more"
    assert await store.kernel_log("nobody") is None


@pytest.mark.parametrize("key", ["\ud800", "a\0b"])
async def test_what_a_database_cannot_hold_fails_alone(store: Store, key: str) -> None:
    good = [new_session(), new_session()]
    record = IdempotencyRecord(access_key=OWNER, key=key, fingerprint="f", created_at=1, expires_at=2)
    odd = new_session()
    results = await asyncio.gather(
        store.commit(submission(good[0])),
        store.commit(submission(odd) + Batch(idempotency=(record,))),
        store.commit(submission(good[1])),
        return_exceptions=True,
    )
    assert results[0] is None
    assert results[2] is None
    assert {s.id for s in await store.live_sessions()} >= {s.id for s in good}
    if results[1] is not None:  # SQLite can hold a NUL
        assert type(results[1]) is BadRequest
        assert await store.session(odd.id) is None


async def test_a_cancelled_caller_cancels_nothing(store: Store) -> None:
    session = new_session()
    task = asyncio.create_task(store.commit(submission(session)))
    await asyncio.sleep(0)  # let it get in line
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.commit(submission(new_session()))
    assert await store.session(session.id) == session


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit(submission(new_session()))
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.live_sessions()


async def test_nothing_to_commit(store: Store) -> None:
    await store.commit(Batch())
    assert not Batch()

"""A session that is preempted: ended for good, or to run again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.lifecycle import (
    MAX_ATTEMPTS,
    Deadlines,
    DestroyKernels,
    Enqueue,
    KernelEnded,
    KernelStarted,
    Nominated,
    Placed,
    PreemptRequested,
    StartupFinished,
    TerminateRequested,
    step,
)
from backendai_ray.core.sessions import Eviction, Reason, Session, SessionResult, SessionType, Status
from backendai_ray.records import decode, encode

from .builders import a_batch, a_session, everywhere

OTHER = SessionId("other")


def run(session: Session, *, now: float = 10.0) -> Session:
    session = step(session, Placed(cause="p", now=now, where=everywhere(session))).session
    for kernel in session.kernels:
        started = KernelStarted(cause="a", now=now, kernel_id=kernel.id, attempt=session.attempt, container_id="c")
        session = step(session, started).session
    assert session.status is Status.RUNNING
    return session


def preempt(*, reschedule: bool, grace_s: float | None = None, now: float = 20.0) -> PreemptRequested:
    return PreemptRequested(
        cause="p", now=now, beneficiary=OTHER, message="for other", reschedule=reschedule, grace_s=grace_s
    )


def ended(session: Session, index: int = 0, *, now: float = 21.0) -> KernelEnded:
    kernel_id = KernelId(f"k{index}")
    return KernelEnded(cause="a", now=now, kernel_id=kernel_id, attempt=session.attempt, reason=Reason.PREEMPTED)


def test_it_goes_back_into_the_queue_and_keeps_what_it_is() -> None:
    before = run(a_batch(2))
    going = step(before, preempt(reschedule=True, grace_s=7.0))
    assert (going.session.status, going.session.reason) == (Status.TERMINATING, Reason.PREEMPTED)
    assert [effect.grace_s for effect in going.effects if isinstance(effect, DestroyKernels)] == [7.0]
    half = step(going.session, ended(before, 0)).session
    assert half.status is Status.TERMINATING
    back = step(half, ended(before, 1))
    again = back.session
    assert Enqueue() in back.effects
    assert (again.status, again.reason, again.preemptions) == (Status.PENDING, Reason.PREEMPTED, 1)
    assert (again.id, again.spec, again.created_at) == (before.id, before.spec, before.created_at)
    assert (again.attempt, again.started_at, again.result) == (2, None, SessionResult.UNDEFINED)
    assert again.message == "for other; waits to run again from its beginning"
    assert [change.after for change in back.changes if change.kernel_id is None] == [Status.PENDING]


def test_without_reschedule_it_ends() -> None:
    over = step(step(run(a_batch()), preempt(reschedule=False)).session, ended(a_batch())).session
    assert (over.status, over.reason, over.result) == (Status.TERMINATED, Reason.PREEMPTED, SessionResult.FAILURE)


def test_being_preempted_uses_up_no_attempt() -> None:
    session = a_batch()
    for _ in range(MAX_ATTEMPTS + 2):
        session = run(session)
        session = step(step(session, preempt(reschedule=True)).session, ended(session)).session
    assert session.status is Status.PENDING
    session = step(session, Placed(cause="p", now=30.0, where=everywhere(session))).session
    failed = KernelEnded(
        cause="a",
        now=31.0,
        kernel_id=KernelId("k0"),
        attempt=session.attempt,
        reason=Reason.START_FAILED,
        retryable=True,
    )
    assert step(session, failed).session.status is Status.PENDING


def test_the_users_wish_outranks_going_back() -> None:
    going = step(run(a_batch()), preempt(reschedule=True)).session
    wished = step(going, TerminateRequested(cause="u", now=21.0)).session
    over = step(wished, ended(wished)).session
    assert (over.status, over.reason) == (Status.TERMINATED, Reason.USER_REQUESTED)


@pytest.mark.parametrize(
    ("exit_code", "status", "result"),
    [
        (0, Status.TERMINATED, SessionResult.SUCCESS),
        (143, Status.PENDING, SessionResult.UNDEFINED),
        (1, Status.PENDING, SessionResult.UNDEFINED),
    ],
)
def test_a_command_that_ends_in_its_grace(exit_code: int, status: Status, result: SessionResult) -> None:
    """What succeeds in the last moment is done; any other end was the notice's doing."""
    going = step(run(a_batch()), preempt(reschedule=True, grace_s=5.0)).session
    told = step(going, StartupFinished(cause="a", now=22.0, exit_code=exit_code)).session
    over = step(told, ended(told)).session
    assert (over.status, over.result) == (status, result)


@pytest.mark.parametrize(
    ("kind", "requeue", "may"),
    [
        (SessionType.BATCH, None, True),
        (SessionType.BATCH, False, False),
        (SessionType.INTERACTIVE, None, False),
        (SessionType.INTERACTIVE, True, True),
    ],
)
def test_who_may_be_put_back(kind: SessionType, requeue: bool | None, may: bool) -> None:
    session = run(a_session(type=kind, requeue=requeue, startup_command="true"))
    assert (step(session, preempt(reschedule=True)).session.status is Status.TERMINATING) is may


def test_the_deadline_leaves_time_for_the_grace() -> None:
    going = step(run(a_batch()), preempt(reschedule=True, grace_s=100.0, now=20.0)).session
    assert Deadlines(terminating=30.0).of(going) == 150.0


def test_a_nominated_place_is_remembered_until_it_is_placed() -> None:
    waiting = a_batch()
    where = everywhere(waiting)
    nominated = step(waiting, Nominated(cause="p", now=5.0, where=where)).session
    assert (nominated.nominated, nominated.version) == (where, waiting.version + 1)
    assert run(nominated).nominated == {}


def test_what_is_known_of_a_preemption_survives_being_written_down() -> None:
    going = step(replace(run(a_batch(2)), preemptions=3), preempt(reschedule=True, grace_s=5.0)).session
    kept = replace(going, nominated=everywhere(going))
    read = decode(encode(kept), Session)
    assert read == kept
    assert read.eviction == Eviction(beneficiary=OTHER, reschedule=True, grace_s=5.0)

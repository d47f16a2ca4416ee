"""What holds of a session's life whatever is told, how often and in which order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.lifecycle import (
    MAX_ATTEMPTS,
    TRANSITIONS,
    AgentLost,
    CreateKernels,
    DeadlineExpired,
    Dequeue,
    DestroyKernels,
    Enqueue,
    Event,
    KernelEnded,
    KernelProgressed,
    KernelStarted,
    Nominated,
    Placed,
    PreemptRequested,
    ReleaseDevices,
    Renamed,
    RestartRequested,
    StartupFinished,
    Step,
    TerminateRequested,
    step,
)
from backendai_ray.core.sessions import STARTING, TERMINAL, Reason, Session, SessionType, Status

from .builders import a_session, everywhere

AGENTS = ("a1", "a2")
_REASONS = st.sampled_from(list(Reason))

sessions = st.builds(
    a_session,
    st.integers(1, 3),
    type=st.sampled_from(list(SessionType)),
    startup_command=st.sampled_from(["", "true"]),
    batch_timeout_s=st.sampled_from([None, 5.0]),
    requeue=st.sampled_from([None, True, False]),
)


@st.composite
def event_after(draw: Any, session: Session, now: float) -> Event:
    """Any event that a Manager could hand in, fitting or not, of this attempt or of an earlier one."""
    at: dict[str, Any] = {"cause": "c", "now": now}
    kernel_id = KernelId(f"k{draw(st.integers(0, len(session.kernels)))}")  # one of them is nobody's
    attempt = max(1, session.attempt - draw(st.sampled_from([0, 0, 0, 1])))
    match draw(st.integers(0, 11)):
        case 0 | 1:
            return Placed(**at, where=everywhere(session, *draw(st.permutations(AGENTS))))
        case 2:
            status = draw(st.sampled_from([Status.PREPARING, Status.PULLING, Status.CREATING]))
            return KernelProgressed(**at, kernel_id=kernel_id, attempt=attempt, status=status)
        case 3 | 4:
            container = draw(st.sampled_from(["c1", "c2"]))
            return KernelStarted(**at, kernel_id=kernel_id, attempt=attempt, container_id=container)
        case 5:
            return KernelEnded(
                **at, kernel_id=kernel_id, attempt=attempt, reason=draw(_REASONS), retryable=draw(st.booleans())
            )
        case 6:
            return draw(
                st.one_of(
                    st.builds(StartupFinished, **_const(at), exit_code=st.integers(0, 2), timed_out=st.booleans()),
                    st.builds(RestartRequested, **_const(at)),
                    st.builds(Renamed, **_const(at), name=st.sampled_from(["x", "y"])),
                )
            )
        case 7:
            return AgentLost(**at, agent_id=AgentId(draw(st.sampled_from(AGENTS))))
        case 8:
            stale = draw(st.booleans())
            return DeadlineExpired(**at, status=session.status, status_at=session.status_at - stale)
        case 9:
            return PreemptRequested(
                **at,
                beneficiary=SessionId("other"),
                message="a more important one",
                reschedule=draw(st.booleans()),
                grace_s=draw(st.sampled_from([None, 5.0])),
            )
        case 10:
            return Nominated(**at, where=draw(st.sampled_from([{}, everywhere(session, *AGENTS)])))
        case _:
            reason = draw(st.sampled_from([Reason.USER_REQUESTED, Reason.PREEMPTED, Reason.DEPENDENCY_FAILED]))
            return TerminateRequested(**at, reason=reason, forced=draw(st.booleans()))


def _const(values: dict[str, Any]) -> dict[str, Any]:
    return {name: st.just(value) for name, value in values.items()}


class Holdings:
    """Who holds devices according to the effects alone, as a scheduler that hears only those would believe."""

    def __init__(self) -> None:
        self.held: set[KernelId] = set()
        self.queued = True

    def take(self, outcome: Step) -> None:
        for effect in outcome.effects:
            match effect:
                case CreateKernels():
                    assert not self.held
                    self.held = {kernel.id for kernel in outcome.session.kernels}
                case ReleaseDevices(kernel_id):
                    self.held.remove(kernel_id)  # a second release of the same would raise
                case Enqueue():
                    assert not self.queued
                    self.queued = True
                case Dequeue():
                    assert self.queued
                    self.queued = False
                case _:
                    pass


def check_record(session: Session, holdings: Holdings) -> None:
    statuses = {kernel.status for kernel in session.kernels}
    really_held = {k.id for k in session.kernels if k.agent_id is not None and k.status not in TERMINAL}
    assert holdings.held == really_held
    assert holdings.queued == (session.status is Status.PENDING)
    if session.is_terminal:
        assert statuses <= TERMINAL
        assert session.terminated_at is not None
    else:
        assert session.terminated_at is None
    if session.status is Status.RUNNING:
        assert statuses == {Status.RUNNING}
    if session.status is Status.PENDING:
        assert all(k.agent_id is None and not k.allocation.parts for k in session.kernels)
    if session.status in STARTING:
        assert statuses <= STARTING | {Status.RUNNING}
        assert statuses & STARTING
    if session.status is Status.TERMINATING:
        assert statuses <= TERMINAL | {Status.TERMINATING}
        assert statuses - TERMINAL
    assert 1 <= session.attempt - session.preemptions <= MAX_ATTEMPTS
    assert session.eviction is None or session.status is Status.TERMINATING or session.is_terminal


def check_move(before: Session, outcome: Step) -> None:
    after = outcome.session
    if before.is_terminal:
        assert outcome == Step(before)
    assert after.id == before.id
    assert after.version == before.version + (after is not before)
    assert after.attempt >= before.attempt
    assert after.epoch >= before.epoch
    path = [c for c in outcome.changes if c.kernel_id is None]
    at = before.status
    for change in path:
        assert change.before is at
        assert change.after in TRANSITIONS[at]
        at = change.after
    assert at is after.status
    for effect in outcome.effects:
        if isinstance(effect, DestroyKernels):
            alive = {k.id for k in after.kernels if k.status not in TERMINAL}
            assert effect.kernels
            assert {kernel_id for kernel_id, _ in effect.kernels} <= alive


@given(sessions, st.data())
@settings(max_examples=200, deadline=None)
def test_any_events_in_any_order(session: Session, data: st.DataObject) -> None:
    holdings = Holdings()
    told: list[Event] = []
    for now in range(2, 2 + data.draw(st.integers(1, 25))):
        repeat = told and data.draw(st.integers(0, 4)) == 0
        event = data.draw(st.sampled_from(told)) if repeat else data.draw(event_after(session, float(now)))
        told.append(event)
        outcome = step(session, event)
        check_move(session, outcome)
        holdings.take(outcome)
        session = outcome.session
        check_record(session, holdings)


@given(sessions, st.data())
@settings(max_examples=80, deadline=None)
def test_saying_it_twice_is_saying_it_once(session: Session, data: st.DataObject) -> None:
    """Facts and deadlines may come twice: the second time nothing changes, and only orders may be repeated."""
    for now in range(2, 14):
        event = data.draw(event_after(session, float(now)))
        session = step(session, event).session
        if isinstance(event, Renamed):
            continue
        if isinstance(event, Placed) and session.status is Status.PENDING:
            continue
        again = step(session, event)
        assert again.session is session
        assert all(isinstance(effect, DestroyKernels) for effect in again.effects)


@given(sessions, st.data())
@settings(max_examples=80, deadline=None)
def test_from_anywhere_the_end_is_near(session: Session, data: st.DataObject) -> None:
    """Whatever happened: once asked to end, a session is over as soon as every kernel is told as ended."""
    for now in range(2, 2 + data.draw(st.integers(0, 12))):
        session = step(session, data.draw(event_after(session, float(now)))).session
    session = step(session, TerminateRequested(cause="c", now=90.0)).session
    for kernel in session.kernels:
        gone = KernelEnded(
            cause="c", now=91.0, kernel_id=kernel.id, attempt=session.attempt, reason=Reason.USER_REQUESTED
        )
        session = step(session, gone).session
    assert session.is_terminal

"""The life of a session, move by move; what holds under any events is in test_lifecycle_properties."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backendai_ray.core.errors import InvalidTransition
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.lifecycle import (
    MAX_ATTEMPTS,
    OWNERS,
    TRANSITIONS,
    AgentLost,
    CreateKernels,
    DeadlineExpired,
    Deadlines,
    Dequeue,
    DestroyKernels,
    Enqueue,
    KernelEnded,
    KernelProgressed,
    KernelStarted,
    Placed,
    ReleaseDevices,
    Renamed,
    RestartKernels,
    RestartRequested,
    RunStartup,
    StartupFinished,
    Step,
    TerminateRequested,
    UpdateRoute,
    step,
)
from backendai_ray.core.sessions import TERMINAL, Reason, Session, SessionResult, Status

from .builders import a_batch, a_session, everywhere

AT = {"cause": "test", "now": 10.0}


def placed(session: Session, *agents: str) -> Session:
    return step(session, Placed(**AT, where=everywhere(session, *agents))).session


def started(session: Session, *agents: str) -> Session:
    session = placed(session, *agents)
    for kernel in session.kernels:
        session = step(session, _started(session, kernel.id)).session
    return session


def _started(session: Session, kernel: str = "k0", container: str = "c") -> KernelStarted:
    return KernelStarted(**AT, kernel_id=KernelId(kernel), attempt=session.attempt, container_id=container)


def _ended(session: Session, kernel: str = "k0", reason: Reason = Reason.SELF_TERMINATED, **more: object) -> Step:
    event = KernelEnded(**AT, kernel_id=KernelId(kernel), attempt=session.attempt, reason=reason, **more)  # type: ignore[arg-type]
    return step(session, event)


def moves(outcome: Step) -> list[tuple[Status, Status]]:
    return [(c.before, c.after) for c in outcome.changes if c.kernel_id is None]


def test_every_status_has_its_moves_and_every_live_one_an_owner() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set(OWNERS) == set(Status) - TERMINAL
    assert {status for status, after in TRANSITIONS.items() if not after} == set(TERMINAL)


def test_the_usual_life() -> None:
    session = a_session()
    first = step(session, Placed(**AT, where=everywhere(session)))
    assert first.effects == (Dequeue(), CreateKernels())
    assert moves(first) == [(Status.PENDING, Status.SCHEDULED)]
    session = first.session
    for status in (Status.PREPARING, Status.CREATING):
        event = KernelProgressed(**AT, kernel_id=KernelId("k0"), attempt=1, status=status)
        session = step(session, event).session
        assert session.status is status
    running = step(session, _started(session))
    assert running.session.status is Status.RUNNING
    assert running.session.started_at == 10.0
    assert running.effects == ()
    ending = step(running.session, TerminateRequested(**AT))
    assert ending.session.status is Status.TERMINATING
    assert ending.effects == (DestroyKernels(((KernelId("k0"), AgentId("a1")),), Reason.USER_REQUESTED),)
    ended = _ended(ending.session, reason=Reason.USER_REQUESTED)
    assert ended.session.status is Status.TERMINATED
    assert ended.effects == (ReleaseDevices(KernelId("k0"), AgentId("a1")),)


def test_a_pending_session_is_cancelled_at_once() -> None:
    outcome = step(a_session(2), TerminateRequested(**AT, message="the user asked for it"))
    assert outcome.session.status is Status.CANCELLED
    assert {k.status for k in outcome.session.kernels} == {Status.CANCELLED}
    assert outcome.effects == (Dequeue(),)


def test_a_gang_runs_when_its_last_member_does() -> None:
    session = placed(a_session(2))
    half = step(session, _started(session, "k1"))
    assert half.session.status is Status.SCHEDULED
    assert step(half.session, _started(session, "k0")).session.status is Status.RUNNING


def test_a_gang_is_as_far_as_its_slowest_member() -> None:
    session = placed(a_session(2))
    k0 = KernelProgressed(**AT, kernel_id=KernelId("k0"), attempt=1, status=Status.CREATING)
    session = step(session, k0).session
    assert session.status is Status.SCHEDULED
    k1 = KernelProgressed(**AT, kernel_id=KernelId("k1"), attempt=1, status=Status.PULLING, message="3 of 10 MB")
    session = step(session, k1).session
    assert (session.status, session.message) == (Status.PULLING, "3 of 10 MB")


def test_progress_never_goes_back_nor_means_running() -> None:
    session = placed(a_session())
    session = step(session, KernelProgressed(**AT, kernel_id=KernelId("k0"), attempt=1, status=Status.CREATING)).session
    for status in (Status.PREPARING, Status.CREATING, Status.RUNNING, Status.TERMINATED):
        late = KernelProgressed(**AT, kernel_id=KernelId("k0"), attempt=1, status=status)
        assert step(session, late).session is session


def test_when_one_member_ends_the_others_are_ended() -> None:
    session = started(a_session(2), "a1", "a2")
    outcome = _ended(session, "k1", Reason.OUT_OF_MEMORY, message="killed for memory", exit_code=137)
    assert outcome.session.status is Status.TERMINATING
    assert outcome.session.message == "sub1: killed for memory"
    assert outcome.effects == (
        ReleaseDevices(KernelId("k1"), AgentId("a2")),
        DestroyKernels(((KernelId("k0"), AgentId("a1")),), Reason.OUT_OF_MEMORY),
    )
    assert _ended(outcome.session, "k0").session.status is Status.TERMINATED


def test_a_session_that_ends_by_itself_shows_both_moves() -> None:
    outcome = _ended(started(a_session()), exit_code=3)
    assert moves(outcome) == [(Status.RUNNING, Status.TERMINATING), (Status.TERMINATING, Status.TERMINATED)]
    assert outcome.session.exit_code == 3


def test_a_start_that_may_pass_is_tried_again_up_to_the_limit() -> None:
    session = a_session()
    for attempt in range(1, MAX_ATTEMPTS):
        outcome = _ended(placed(session), reason=Reason.START_FAILED, message="engine busy", retryable=True)
        assert outcome.effects == (ReleaseDevices(KernelId("k0"), AgentId("a1")), Enqueue())
        assert moves(outcome)[-1] == (Status.TERMINATING, Status.PENDING)
        session = outcome.session
        assert session.attempt == attempt + 1
        assert session.kernels[0].agent_id is None
        assert "engine busy" in session.message
    last = _ended(placed(session), reason=Reason.START_FAILED, message="engine busy", retryable=True)
    assert (last.session.status, last.session.reason) == (Status.ERROR, Reason.START_FAILED)


def test_a_start_that_cannot_succeed_is_an_error_at_once() -> None:
    outcome = _ended(placed(a_session()), reason=Reason.IMAGE_NOT_FOUND, message="no such image")
    assert (outcome.session.status, outcome.session.message) == (Status.ERROR, "no such image")


def test_a_gang_losing_a_node_while_it_starts_is_tried_again_even_if_that_member_ran_already() -> None:
    """1. Two kernels on two nodes. 2. One runs, the other is on its way. 3. The first one's node is lost."""
    session = placed(a_session(2), "a1", "a2")
    session = step(session, _started(session, "k0")).session
    lost = step(session, AgentLost(**AT, agent_id=AgentId("a1")))
    assert (lost.session.status, lost.session.reason) == (Status.TERMINATING, Reason.RETRY)
    assert _ended(lost.session, "k1").session.status is Status.PENDING


def test_the_users_wish_outranks_another_try() -> None:
    session = placed(a_session(2), "a1", "a2")
    session = _ended(session, "k0", Reason.START_FAILED, retryable=True).session
    session = step(session, TerminateRequested(**AT)).session
    ended = _ended(session, "k1").session
    assert (ended.status, ended.reason) == (Status.TERMINATED, Reason.USER_REQUESTED)


def test_news_of_an_earlier_attempt_is_dropped() -> None:
    session = placed(_ended(placed(a_session()), reason=Reason.START_FAILED, retryable=True).session)
    late_start = KernelStarted(**AT, kernel_id=KernelId("k0"), attempt=1, container_id="old")
    late_end = KernelEnded(**AT, kernel_id=KernelId("k0"), attempt=1, reason=Reason.START_FAILED)
    assert step(session, late_start) == Step(session)
    assert step(session, late_end) == Step(session)


def test_a_batch_session_runs_its_command_and_ends_with_it() -> None:
    session = placed(a_batch())
    running = step(session, _started(session))
    assert running.effects == (RunStartup(),)
    finished = step(running.session, StartupFinished(**AT, exit_code=0))
    assert finished.session.result is SessionResult.SUCCESS
    assert (finished.session.status, finished.session.reason) == (Status.TERMINATING, Reason.TASK_FINISHED)
    assert _ended(finished.session, exit_code=137).session.exit_code == 0


@pytest.mark.parametrize(
    ("exit_code", "timed_out", "reason"), [(2, False, Reason.TASK_FAILED), (0, True, Reason.TASK_TIMEOUT)]
)
def test_a_batch_session_that_fails(exit_code: int, timed_out: bool, reason: Reason) -> None:
    outcome = step(started(a_batch()), StartupFinished(**AT, exit_code=exit_code, timed_out=timed_out))
    assert (outcome.session.result, outcome.session.reason) == (SessionResult.FAILURE, reason)
    assert _ended(outcome.session).session.status is Status.TERMINATED


def test_a_batch_session_ended_early_has_failed() -> None:
    assert _ended(started(a_batch())).session.result is SessionResult.FAILURE


def test_the_end_of_a_command_that_a_restart_cut_off_does_not_count() -> None:
    """1. A batch session is restarted. 2. Its first command's death is told. 3. The second run still decides."""
    session = step(started(a_batch()), RestartRequested(**AT)).session
    session = step(session, StartupFinished(**AT, exit_code=143)).session
    again = step(session, _started(session, container="c2"))
    assert again.effects == (RunStartup(),)
    assert step(again.session, StartupFinished(**AT, exit_code=0)).session.result is SessionResult.SUCCESS


def test_an_interactive_sessions_startup_command_runs_in_every_fresh_container() -> None:
    session = placed(a_session(startup_command="jupyter lab"))
    first = step(session, _started(session))
    assert first.effects == (RunStartup(),)
    restarted = step(first.session, RestartRequested(**AT)).session
    assert step(restarted, _started(restarted, container="c2")).effects == (RunStartup(),)


def test_a_restart_keeps_place_and_devices_and_makes_routes_stale() -> None:
    before = started(a_session(2), "a1", "a2")
    outcome = step(before, RestartRequested(**AT))
    assert outcome.session.status is Status.RESTARTING
    assert outcome.session.epoch == before.epoch + 1
    assert [k.allocation for k in outcome.session.kernels] == [k.allocation for k in before.kernels]
    assert outcome.effects == (RestartKernels(tuple((k.id, AgentId(k.agent_id or "")) for k in before.kernels)),)
    assert step(outcome.session, RestartRequested(**AT)) == Step(outcome.session)


def test_a_late_word_of_the_old_container_does_not_end_a_restart() -> None:
    session = step(started(a_session()), RestartRequested(**AT)).session
    assert step(session, _started(session, container="c")) == Step(session)
    assert step(session, _started(session, container="c2")).session.status is Status.RUNNING


def test_a_rename_makes_routes_stale() -> None:
    outcome = step(started(a_session()), Renamed(**AT, name="other"))
    assert (outcome.session.spec.name, outcome.session.epoch) == ("other", 1)
    assert outcome.effects == (UpdateRoute(),)
    assert outcome.changes == ()


def test_a_lost_node_ends_what_ran_there_and_gets_no_orders() -> None:
    session = started(a_session(3), "a1", "a2")
    outcome = step(session, AgentLost(**AT, agent_id=AgentId("a1")))
    assert outcome.session.status is Status.TERMINATING
    assert {k.status for k in outcome.session.kernels if k.agent_id == "a1"} == {Status.TERMINATED}
    destroyed = [pair for e in outcome.effects if isinstance(e, DestroyKernels) for pair in e.kernels]
    assert destroyed == [(KernelId("k1"), AgentId("a2"))]
    assert _ended(outcome.session, "k1").session.status is Status.ERROR


def test_the_loss_of_a_foreign_node_is_no_news() -> None:
    session = started(a_session())
    assert step(session, AgentLost(**AT, agent_id=AgentId("a9"))) == Step(session)


def test_a_placement_must_name_every_kernel() -> None:
    session = a_session(2)
    where = everywhere(session)
    del where[KernelId("k1")]
    with pytest.raises(InvalidTransition, match="sub1"):
        step(session, Placed(**AT, where=where))


def test_a_kernel_that_started_too_late_is_ended() -> None:
    session = step(placed(a_session()), TerminateRequested(**AT)).session
    late = step(session, _started(session))
    assert late.session is session
    assert late.effects == (DestroyKernels(((KernelId("k0"), AgentId("a1")),), Reason.USER_REQUESTED),)


def _expire(session: Session) -> Step:
    return step(session, DeadlineExpired(cause="test", now=99.0, status=session.status, status_at=session.status_at))


def test_deadlines_of_each_state() -> None:
    pending = _expire(a_session())
    assert (pending.session.status, pending.session.reason) == (Status.CANCELLED, Reason.PENDING_TIMEOUT)
    starting = _expire(placed(a_session()))
    assert (starting.session.status, starting.session.reason) == (Status.TERMINATING, Reason.RETRY)
    third = _expire(replace(placed(a_session()), attempt=MAX_ATTEMPTS))
    assert third.session.reason is Reason.START_TIMEOUT
    batch = _expire(started(a_batch(batch_timeout_s=5.0)))
    assert (batch.session.reason, batch.session.result) == (Reason.TASK_TIMEOUT, SessionResult.FAILURE)
    assert batch.session.message == "the session ran longer than 5 s"
    restarting = _expire(step(started(a_session()), RestartRequested(**AT)).session)
    assert restarting.session.reason is Reason.START_TIMEOUT
    interactive = started(a_session())
    assert _expire(interactive) == Step(interactive)


def test_a_session_that_does_not_end_is_asked_again_harder_and_again() -> None:
    session = step(started(a_session()), TerminateRequested(**AT)).session
    again = _expire(session)
    assert again.effects == (DestroyKernels(((KernelId("k0"), AgentId("a1")),), Reason.USER_REQUESTED, True),)
    assert again.session.status_at == 99.0
    assert again.changes == ()


def test_a_deadline_of_a_state_left_meanwhile_is_no_news() -> None:
    session = placed(a_session())
    stale = DeadlineExpired(**AT, status=Status.PENDING, status_at=1.0)
    assert step(session, stale) == Step(session)


def test_when_a_state_is_overdue() -> None:
    deadlines = Deadlines(pending=100.0, scheduled=30.0, terminating=None)
    assert deadlines.of(a_session()) == 101.0
    assert deadlines.of(a_session(starts_at=50.0)) == 150.0
    assert deadlines.of(placed(a_session())) == 40.0
    assert deadlines.of(started(a_session())) is None
    assert deadlines.of(started(a_batch(batch_timeout_s=5.0))) == 15.0
    assert deadlines.of(started(a_batch())) is None
    assert deadlines.of(step(placed(a_session()), TerminateRequested(**AT)).session) is None
    assert deadlines.of(step(a_session(), TerminateRequested(**AT)).session) is None


def test_the_cause_is_on_every_change() -> None:
    session = a_session(2)
    outcome = step(session, Placed(cause="pass-7", now=10.0, where=everywhere(session)))
    assert {c.cause for c in outcome.changes} == {"pass-7"}
    assert len(outcome.changes) == 3

"""The life of a session: ``event -> (session, effects)``, as one visible table.

Theory of operation. A session and its kernels move together and are one record, so a gang can never be half of one
thing and half of another. :func:`step` is the only way to change one. It never does anything: what must be done
comes back as effects, which the Manager carries out after the new record is committed; a finished effect comes back
as the next event. Saying a thing twice, late or out of order is normal and harmless: an event that does not fit any
more returns the record unchanged with no effects. Only an impossible move (a bug) raises.

Who owns a state is who moves it on; the deadline is how long it may last before the Manager asks for the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, assert_never

from .effects import (
    CreateKernels,
    Dequeue,
    DestroyKernels,
    Effect,
    Enqueue,
    ReleaseDevices,
    RestartKernels,
    RunStartup,
    UpdateRoute,
)
from .errors import InvalidTransition
from .events import (
    AgentLost,
    DeadlineExpired,
    Event,
    KernelEnded,
    KernelProgressed,
    KernelStarted,
    Nominated,
    Placed,
    PreemptRequested,
    Renamed,
    RestartRequested,
    StartupFinished,
    TerminateRequested,
)
from .ids import AgentId, KernelId, ResourceGroupName, SessionId
from .sessions import (
    STARTING,
    TERMINAL,
    Eviction,
    Kernel,
    Reason,
    Session,
    SessionResult,
    SessionSpec,
    SessionType,
    Status,
)

__all__ = [
    "MAX_ATTEMPTS",
    "OWNERS",
    "TRANSITIONS",
    "AgentLost",
    "CreateKernels",
    "DeadlineExpired",
    "Deadlines",
    "Dequeue",
    "DestroyKernels",
    "Effect",
    "Enqueue",
    "Event",
    "KernelEnded",
    "KernelProgressed",
    "KernelStarted",
    "Nominated",
    "Placed",
    "PreemptRequested",
    "ReleaseDevices",
    "Renamed",
    "RestartKernels",
    "RestartRequested",
    "RunStartup",
    "StartupFinished",
    "StatusChange",
    "Step",
    "TerminateRequested",
    "UpdateRoute",
    "step",
]

MAX_ATTEMPTS: Final = 3
"""Placements of one session before a failed start is final."""

TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.PENDING: frozenset({Status.SCHEDULED, Status.CANCELLED}),
    Status.SCHEDULED: frozenset(
        {Status.PREPARING, Status.PULLING, Status.CREATING, Status.RUNNING, Status.TERMINATING}
    ),
    Status.PREPARING: frozenset({Status.PULLING, Status.CREATING, Status.RUNNING, Status.TERMINATING}),
    Status.PULLING: frozenset({Status.CREATING, Status.RUNNING, Status.TERMINATING}),
    Status.CREATING: frozenset({Status.RUNNING, Status.TERMINATING}),
    Status.RUNNING: frozenset({Status.RESTARTING, Status.TERMINATING}),
    Status.RESTARTING: frozenset({Status.RUNNING, Status.TERMINATING}),
    Status.TERMINATING: frozenset({Status.TERMINATED, Status.ERROR, Status.PENDING}),
    Status.TERMINATED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.ERROR: frozenset(),
}
"""Every legal move of a session. One event may make two of them: a session whose last kernel ends by itself goes
through TERMINATING within one step, and the history shows both moves. A start that failed in a way that may pass,
and a session that was preempted to be run again, go back to PENDING once nothing of them is left."""

OWNERS: Final[Mapping[Status, str]] = {
    Status.PENDING: "sokovan",
    Status.SCHEDULED: "manager",
    Status.PREPARING: "agent",
    Status.PULLING: "agent",
    Status.CREATING: "agent",
    Status.RUNNING: "agent",
    Status.RESTARTING: "agent",
    Status.TERMINATING: "agent",
}
"""Who moves a state on; terminal states have no owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each state may last, in seconds; ``None`` means without end."""

    pending: float | None = None
    scheduled: float | None = 30.0
    preparing: float | None = 60.0
    pulling: float | None = 7200.0
    creating: float | None = 120.0
    restarting: float | None = 120.0
    terminating: float | None = 30.0
    agent_lost: float = 60.0
    """How long a node may be away before its kernels are given up."""
    pending_by_group: Mapping[ResourceGroupName, float] = field(default_factory=dict)
    """Instead of :attr:`pending`, in the resource groups named."""

    def pending_limit(self, spec: SessionSpec) -> float | None:
        """Return how long a session may wait for a place: its own limit, else its group's, else everybody's."""
        if spec.pending_timeout_s is not None:
            return spec.pending_timeout_s
        return self.pending_by_group.get(spec.resource_group, self.pending)

    def of(self, session: Session, eligible_at: float = 0.0) -> float | None:
        """Return when the session's present state is overdue, in Unix seconds.

        Args:
            session: The session.
            eligible_at: When the last session that it depends on ended, if it waits for a place.
        """
        if session.status is Status.PENDING:
            limit = self.pending_limit(session.spec)
            # Waiting for one's own start time, or for others to end, is not waiting for a place.
            since = max(session.status_at, session.spec.starts_at or 0.0, eligible_at)
            return None if limit is None else since + limit
        if session.status is Status.RUNNING:
            limit = session.spec.batch_timeout_s if session.spec.type is SessionType.BATCH else None
        elif session.is_terminal:
            return None
        else:
            limit = getattr(self, session.status.value.lower())
            if limit is not None and session.status is Status.TERMINATING and session.eviction is not None:
                limit += session.eviction.grace_s or 0.0
        return None if limit is None else session.status_at + limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """One line of the status history; also what the event bus carries."""

    session_id: SessionId
    kernel_id: KernelId | None
    """``None``: the session itself."""
    before: Status
    after: Status
    reason: Reason
    message: str
    at: float
    cause: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one event did."""

    session: Session
    effects: tuple[Effect, ...] = ()
    changes: tuple[StatusChange, ...] = ()


# ── the machine ────────────────────────────────────────────────────────────────────────────────────────────────────


def step(session: Session, event: Event) -> Step:
    """Return what the event makes of the session, what must be done, and what changed.

    Raises:
        InvalidTransition: the event asks for a move that the table does not have; a bug in the caller.
    """
    if session.is_terminal:
        return Step(session)
    after, effects = _handle(session, event)
    if after is session:
        return Step(session, effects)
    after = replace(after, version=session.version + 1)
    return Step(after, effects, _changes(session, after, event))


def _handle(session: Session, event: Event) -> tuple[Session, tuple[Effect, ...]]:
    match event:
        case Placed():
            return _placed(session, event)
        case KernelProgressed():
            return _kernel_progressed(session, event)
        case KernelStarted():
            return _kernel_started(session, event)
        case KernelEnded():
            return _kernel_ended(session, event)
        case StartupFinished():
            return _startup_finished(session, event)
        case TerminateRequested():
            return _terminate(session, event.reason, event.message, event.now, forced=event.forced)
        case Nominated():
            is_news = session.status is Status.PENDING and session.nominated != event.where
            return (replace(session, nominated=event.where) if is_news else session), ()
        case PreemptRequested():
            return _preempt(session, event)
        case RestartRequested():
            return _restart(session, event)
        case Renamed():
            spec = replace(session.spec, name=event.name)
            return replace(session, spec=spec, epoch=session.epoch + 1), (UpdateRoute(),)
        case AgentLost():
            return _agent_lost(session, event)
        case DeadlineExpired():
            return _deadline_expired(session, event)
        case _:
            assert_never(event)


def _move(session: Session, status: Status, reason: Reason, message: str, now: float) -> Session:
    if status not in TRANSITIONS[session.status]:
        raise InvalidTransition(
            f"session {session.id} cannot go from {session.status} to {status} ({reason}: {message})",
            session_id=session.id,
            before=session.status.value,
            after=status.value,
        )
    return replace(session, status=status, reason=reason, message=message, status_at=now)


def _with_kernel(session: Session, kernel: Kernel) -> Session:
    return replace(session, kernels=tuple(kernel if k.id == kernel.id else k for k in session.kernels))


def _placed(session: Session, event: Placed) -> tuple[Session, tuple[Effect, ...]]:
    if session.status is not Status.PENDING:
        return session, ()
    if missing := [kernel.hostname for kernel in session.kernels if kernel.id not in event.where]:
        raise InvalidTransition(f"session {session.id} cannot be placed without {', '.join(missing)}")
    kernels = tuple(
        replace(
            kernel,
            status=Status.SCHEDULED,
            reason=Reason.PLACED,
            agent_id=event.where[kernel.id][0],
            allocation=event.where[kernel.id][1],
            placed_at=event.now,
        )
        for kernel in session.kernels
    )
    nodes = ", ".join(sorted({str(agent) for agent, _ in event.where.values()}))
    session = replace(session, kernels=kernels, nominated={})
    placed = _move(session, Status.SCHEDULED, Reason.PLACED, f"placed on {nodes}", event.now)
    return placed, (Dequeue(), CreateKernels())


_PROGRESS_ORDER: Final = (Status.SCHEDULED, Status.PREPARING, Status.PULLING, Status.CREATING)


def _kernel_progressed(session: Session, event: KernelProgressed) -> tuple[Session, tuple[Effect, ...]]:
    kernel = session.kernel(event.kernel_id)
    if kernel is None or event.attempt != session.attempt or kernel.status not in STARTING:
        return session, ()
    if event.status not in STARTING or _PROGRESS_ORDER.index(event.status) <= _PROGRESS_ORDER.index(kernel.status):
        return session, ()
    kernel = replace(kernel, status=event.status, reason=Reason.PROGRESS, message=event.message)
    session = _with_kernel(session, kernel)
    # A gang is as far as its slowest member that is still on the way.
    on_the_way = [k.status for k in session.kernels if k.status in STARTING]
    slowest = min(on_the_way, key=_PROGRESS_ORDER.index)
    if session.status in STARTING and slowest in TRANSITIONS[session.status]:
        session = _move(session, slowest, Reason.PROGRESS, event.message, event.now)
    return session, ()


def _kernel_started(session: Session, event: KernelStarted) -> tuple[Session, tuple[Effect, ...]]:
    kernel = session.kernel(event.kernel_id)
    if kernel is None or kernel.agent_id is None or event.attempt != session.attempt or kernel.status in TERMINAL:
        return session, ()
    if session.status is Status.TERMINATING:
        return session, (DestroyKernels(((kernel.id, kernel.agent_id),), session.reason),)
    if kernel.status is Status.RUNNING:
        return session, ()
    if kernel.status is Status.RESTARTING and event.container_id and event.container_id == kernel.container_id:
        return session, ()  # late word of the container that is being replaced
    kernel = replace(
        kernel,
        status=Status.RUNNING,
        reason=Reason.STARTED,
        message="",
        container_id=event.container_id,
        started_at=event.now,
    )
    session = _with_kernel(session, kernel)
    if any(k.status is not Status.RUNNING for k in session.kernels):
        return session, ()
    session = _move(session, Status.RUNNING, Reason.STARTED, "", event.now)
    session = replace(session, started_at=session.started_at or event.now)
    has_command = session.spec.type is SessionType.BATCH or session.spec.startup_command
    return session, (RunStartup(),) if has_command else ()  # also after a restart: what it had started is gone


def _kernel_ended(session: Session, event: KernelEnded) -> tuple[Session, tuple[Effect, ...]]:
    kernel = session.kernel(event.kernel_id)
    if kernel is None or kernel.agent_id is None or event.attempt != session.attempt or kernel.status in TERMINAL:
        return session, ()
    agent_id = kernel.agent_id
    # Of a gang that is not complete yet, a member that ran already ends as part of the failed start.
    failed_start = session.status in STARTING
    kernel = replace(
        kernel,
        status=Status.ERROR if failed_start and kernel.status in STARTING else Status.TERMINATED,
        reason=event.reason,
        message=event.message,
        exit_code=event.exit_code,
        terminated_at=event.now,
    )
    effects: tuple[Effect, ...] = (ReleaseDevices(kernel.id, agent_id),)
    session = _with_kernel(session, kernel)
    if session.status is not Status.TERMINATING:
        reason = Reason.RETRY if failed_start and event.retryable and _may_retry(session) else event.reason
        message = event.message or f"{kernel.hostname} ended: {event.reason}"
        if session.spec.cluster_size > 1:
            message = f"{kernel.hostname}: {message}"
        exit_code = event.exit_code if kernel.id == session.main.id else session.exit_code
        session = replace(session, exit_code=exit_code)
        session, more = _terminate(session, reason, message, event.now, forced=failed_start)
        effects += more
    return _finish_if_empty(session, event.now, effects)


def _finish_if_empty(session: Session, now: float, effects: tuple[Effect, ...]) -> tuple[Session, tuple[Effect, ...]]:
    if session.status is not Status.TERMINATING or any(k.status not in TERMINAL for k in session.kernels):
        return session, effects
    if _goes_back(session):
        return _back_to_queue(session, now), (*effects, Enqueue())
    failed = session.reason in _FAILURES and session.result is not SessionResult.SUCCESS
    ended = _move(session, Status.ERROR if failed else Status.TERMINATED, session.reason, session.message, now)
    result = session.result
    if result is SessionResult.UNDEFINED and session.spec.type is SessionType.BATCH:
        result = SessionResult.FAILURE
    return replace(ended, terminated_at=now, result=result), effects


_FAILURES: Final = frozenset({Reason.START_FAILED, Reason.START_TIMEOUT, Reason.IMAGE_NOT_FOUND, Reason.AGENT_LOST})
"""Reasons that make the end an ERROR and not a TERMINATED: nothing that the user or the program did."""


def _may_retry(session: Session) -> bool:
    """Return whether a failed start is tried again; being preempted is no failure."""
    return session.attempt - session.preemptions < MAX_ATTEMPTS


def _goes_back(session: Session) -> bool:
    """Return whether a session that is being ended waits again afterwards."""
    if session.reason is Reason.PREEMPTED:
        return session.eviction is not None and session.eviction.reschedule
    return session.reason is Reason.RETRY and _may_retry(session)


def _back_to_queue(session: Session, now: float) -> Session:
    kernels = tuple(Kernel(id=k.id, role=k.role, index=k.index) for k in session.kernels)
    if session.reason is Reason.PREEMPTED:
        message = f"{session.message}; waits to run again from its beginning"
        session = replace(session, preemptions=session.preemptions + 1, started_at=None, exit_code=None)
    else:
        message = f"attempt {session.attempt} failed ({session.message}); waiting for another try"
    queued = _move(session, Status.PENDING, session.reason, message, now)
    return replace(queued, kernels=kernels, attempt=session.attempt + 1, eviction=None)


def _preempt(session: Session, event: PreemptRequested) -> tuple[Session, tuple[Effect, ...]]:
    if session.status in (Status.PENDING, Status.TERMINATING) or (event.reschedule and not session.spec.may_requeue):
        return session, ()
    eviction = Eviction(beneficiary=event.beneficiary, reschedule=event.reschedule, grace_s=event.grace_s)
    session = replace(session, eviction=eviction, nominated=event.next_place)
    return _terminate(session, Reason.PREEMPTED, event.message, event.now, forced=False)


def _startup_finished(session: Session, event: StartupFinished) -> tuple[Session, tuple[Effect, ...]]:
    if session.spec.type is not SessionType.BATCH or session.result is not SessionResult.UNDEFINED:
        return session, ()
    if session.status not in (Status.RUNNING, Status.TERMINATING):
        return session, ()  # a restart cut it off; what counts is the run after it
    succeeded = event.exit_code == 0 and not event.timed_out
    if session.status is Status.TERMINATING and session.reason is Reason.PREEMPTED and _goes_back(session):
        if not succeeded:
            return session, ()  # it was told to end, and runs again
        message = "the command ended with exit code 0 before it was preempted"
        session = replace(session, reason=Reason.TASK_FINISHED, message=message)
    session = replace(
        session,
        result=SessionResult.SUCCESS if succeeded else SessionResult.FAILURE,
        exit_code=event.exit_code,
    )
    if event.timed_out:
        reason, message = Reason.TASK_TIMEOUT, f"the command ran longer than {_allowed_time(session)}"
    elif succeeded:
        reason, message = Reason.TASK_FINISHED, "the command ended with exit code 0"
    else:
        reason, message = Reason.TASK_FAILED, f"the command ended with exit code {event.exit_code}"
    if session.status is Status.TERMINATING:
        return session, ()
    return _terminate(session, reason, message, event.now, forced=False)


def _allowed_time(session: Session) -> str:
    limit = session.spec.batch_timeout_s
    return "allowed" if limit is None else f"{limit:g} s"


def _terminate(
    session: Session, reason: Reason, message: str, now: float, *, forced: bool
) -> tuple[Session, tuple[Effect, ...]]:
    if session.status is Status.PENDING:
        cancelled = _move(session, Status.CANCELLED, reason, message, now)
        kernels = tuple(
            replace(k, status=Status.CANCELLED, reason=reason, message=message, terminated_at=now)
            for k in session.kernels
        )
        return replace(cancelled, kernels=kernels, terminated_at=now), (Dequeue(),)
    if session.status is Status.TERMINATING:
        if reason is not Reason.RETRY and _goes_back(session):  # the user's wish outranks a new try
            eviction = session.eviction and replace(session.eviction, reschedule=False)
            session = replace(session, reason=reason, message=message, eviction=eviction)
        return session, _destroy(session, reason, forced=forced) if forced else ()
    terminating = _move(session, Status.TERMINATING, reason, message, now)
    effects = _destroy(session, reason, forced=forced)
    kernels = tuple(
        k if k.status in TERMINAL else replace(k, status=Status.TERMINATING, reason=reason, message="")
        for k in session.kernels
    )
    return _finish_if_empty(replace(terminating, kernels=kernels), now, effects)


def _destroy(session: Session, reason: Reason, *, forced: bool) -> tuple[Effect, ...]:
    alive = tuple((k.id, k.agent_id) for k in session.kernels if k.agent_id and k.status not in TERMINAL)
    grace_s = session.eviction.grace_s if session.eviction is not None else None
    return (DestroyKernels(alive, reason, forced, grace_s),) if alive else ()


def _restart(session: Session, event: RestartRequested) -> tuple[Session, tuple[Effect, ...]]:
    if session.status is not Status.RUNNING:
        return session, ()
    kernels = tuple(
        replace(k, status=Status.RESTARTING, reason=Reason.RESTART, started_at=None) for k in session.kernels
    )
    session = replace(session, kernels=kernels, epoch=session.epoch + 1)
    session = _move(session, Status.RESTARTING, Reason.RESTART, "the user asked for fresh containers", event.now)
    return session, (RestartKernels(tuple((k.id, k.agent_id) for k in kernels if k.agent_id)),)


def _agent_lost(session: Session, event: AgentLost) -> tuple[Session, tuple[Effect, ...]]:
    message = f"the node {event.agent_id} has been away for too long"
    effects: tuple[Effect, ...] = ()
    for kernel in session.kernels:
        if kernel.agent_id != event.agent_id or kernel.status in TERMINAL:
            continue
        ended = KernelEnded(
            cause=event.cause,
            now=event.now,
            kernel_id=kernel.id,
            attempt=session.attempt,
            reason=Reason.AGENT_LOST,
            message=message,
            retryable=True,
        )
        session, more = _kernel_ended(session, ended)
        effects += more
        if session.is_terminal or session.status is Status.PENDING:
            break
    return session, tuple(kept for effect in effects if (kept := _without_agent(effect, event.agent_id)))


def _without_agent(effect: Effect, agent_id: AgentId) -> Effect | None:
    """Drop orders to an agent that is lost; what it still has is destroyed when it comes back."""
    if not isinstance(effect, DestroyKernels):
        return effect
    reachable = tuple(pair for pair in effect.kernels if pair[1] != agent_id)
    return replace(effect, kernels=reachable) if reachable else None


def _deadline_expired(session: Session, event: DeadlineExpired) -> tuple[Session, tuple[Effect, ...]]:
    if session.status is not event.status or session.status_at != event.status_at:
        return session, ()
    match session.status:
        case Status.PENDING:
            return _terminate(
                session,
                Reason.PENDING_TIMEOUT,
                event.message or "waited longer than allowed for a place",
                event.now,
                forced=False,
            )
        case Status.TERMINATING:
            # Ask again, harder; the state's clock starts anew, so this repeats until the agents say it is done.
            again = replace(session, status_at=event.now)
            return again, _destroy(session, session.reason, forced=True)
        case Status.RUNNING:
            if session.spec.type is not SessionType.BATCH or session.spec.batch_timeout_s is None:
                return session, ()
            session = replace(session, result=SessionResult.FAILURE)
            message = f"the session ran longer than {_allowed_time(session)}"
            return _terminate(session, Reason.TASK_TIMEOUT, message, event.now, forced=False)
        case _:
            message = f"still {session.status} after its time"
            may_retry = session.status in STARTING and _may_retry(session)
            reason = Reason.RETRY if may_retry else Reason.START_TIMEOUT
            return _terminate(session, reason, message, event.now, forced=True)


def _changes(before: Session, after: Session, event: Event) -> tuple[StatusChange, ...]:
    changes = [
        _change(after.id, new.id, old.status, new.status, new.reason, new.message, event)
        for old, new in zip(before.kernels, after.kernels, strict=True)
        if old.status is not new.status
    ]
    if before.status is not after.status:
        path = [before.status, after.status]
        if after.status not in TRANSITIONS[before.status]:  # two moves in one step, see TRANSITIONS
            path.insert(1, Status.TERMINATING)
        changes.extend(
            _change(after.id, None, old, new, after.reason, after.message, event) for old, new in pairwise(path)
        )
    return tuple(changes)


def _change(
    session_id: SessionId,
    kernel_id: KernelId | None,
    before: Status,
    after: Status,
    reason: Reason,
    message: str,
    event: Event,
) -> StatusChange:
    return StatusChange(
        session_id=session_id,
        kernel_id=kernel_id,
        before=before,
        after=after,
        reason=reason,
        message=message,
        at=event.now,
        cause=event.cause,
    )

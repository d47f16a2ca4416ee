"""What agents say of kernels, turned into what happened to sessions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.lifecycle import Event, KernelEnded, KernelProgressed, KernelStarted, StartupFinished
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import STARTING, TERMINAL, Kernel, Reason, Session, Status

HasRestarted = Callable[[KernelId, int], bool]
"""Whether the agent has taken the order for the restart of that epoch."""


def is_about(session: Session | None, fact: KernelFact, agent_id: AgentId) -> bool:
    """Return whether a fact is about the kernel that the session has on this node now."""
    kernel = None if session is None else session.kernel(fact.kernel_id)
    if session is None or kernel is None or kernel.agent_id != agent_id:
        return False
    if fact.attempt == 0:  # the agent has no record: nothing of any attempt is there
        return kernel.status is Status.TERMINATING and fact.status in TERMINAL
    return fact.attempt == session.attempt


def events_of(
    session: Session, facts: Iterable[KernelFact], *, cause: str, now: float, has_restarted: HasRestarted
) -> list[Event]:
    """Return what facts about a session's kernels mean for it, in an order that loses nothing."""
    events: list[Event] = []
    for fact in facts:
        kernel = session.kernel(fact.kernel_id)
        if kernel is not None:
            events += _events_of_one(session, kernel, fact, cause, now, has_restarted)
    return events


def _events_of_one(
    session: Session, kernel: Kernel, fact: KernelFact, cause: str, now: float, has_restarted: HasRestarted
) -> list[Event]:
    events: list[Event] = []
    if fact.status in STARTING and fact.status is not Status.SCHEDULED:
        events.append(
            KernelProgressed(
                cause=cause,
                now=now,
                kernel_id=fact.kernel_id,
                attempt=fact.attempt,
                status=fact.status,
                message=fact.message,
            )
        )
    elif fact.status is Status.RUNNING and _is_news(session, kernel, has_restarted):
        events.append(
            KernelStarted(
                cause=cause,
                now=now,
                kernel_id=fact.kernel_id,
                attempt=fact.attempt,
                container_id=fact.container_id,
            )
        )
    if fact.startup_exit_code is not None and kernel.id == session.main.id:
        # Before the end: a command that is done and the container that ends after it may come in one fact.
        events.append(
            StartupFinished(cause=cause, now=now, exit_code=fact.startup_exit_code, timed_out=fact.startup_timed_out)
        )
    if fact.status in TERMINAL:
        events.append(
            KernelEnded(
                cause=cause,
                now=now,
                kernel_id=fact.kernel_id,
                attempt=fact.attempt or session.attempt,
                reason=_reason(fact, kernel),
                message=fact.message,
                exit_code=fact.exit_code,
                retryable=fact.retryable,
            )
        )
    return events


def _is_news(session: Session, kernel: Kernel, has_restarted: HasRestarted) -> bool:
    """A container that is to be replaced runs until its agent has taken the order: that is no news."""
    return kernel.status is not Status.RESTARTING or has_restarted(kernel.id, session.epoch)


def _reason(fact: KernelFact, kernel: Kernel) -> Reason:
    try:
        return Reason(fact.reason)
    except ValueError:
        return Reason.START_FAILED if kernel.status in STARTING else Reason.SELF_TERMINATED


@dataclass(frozen=True, slots=True)
class Missing:
    """What to do about kernels that should be on a node and are not."""

    create: tuple[KernelId, ...] = ()
    """On their way: the order was lost, give it again."""
    lost: tuple[KernelId, ...] = ()
    """Ran, and are gone without a word."""
    gone: tuple[KernelId, ...] = ()
    """Were to end, and nothing of them is there (any more)."""


def judge_missing(
    session: Session, agent_id: AgentId, before: Mapping[KernelId, tuple[int, Status]], there: Iterable[KernelFact]
) -> Missing:
    """Judge a session's kernels that a node does not have.

    Args:
        session: The newest record.
        agent_id: The node.
        before: Attempt and status of kernels when the node was asked; what was placed since is not judged.
        there: What the node has. A kernel that ended in an earlier attempt is not there in this one.
    """
    current = {fact.kernel_id for fact in there if fact.attempt == session.attempt}
    alive = {fact.kernel_id for fact in there if fact.status not in TERMINAL}
    create: list[KernelId] = []
    lost: list[KernelId] = []
    gone: list[KernelId] = []
    for kernel in session.kernels:
        known = before.get(kernel.id)
        if kernel.agent_id != agent_id or kernel.id in current or known is None or known[0] != session.attempt:
            continue
        if kernel.status in STARTING:
            create.append(kernel.id)
        elif kernel.id in alive:
            continue  # the order to end it is given again
        elif kernel.status in (Status.RUNNING, Status.RESTARTING) and known[1] in (Status.RUNNING, Status.RESTARTING):
            lost.append(kernel.id)
        elif kernel.status is Status.TERMINATING and known[1] is Status.TERMINATING:
            gone.append(kernel.id)
    return Missing(tuple(create), tuple(lost), tuple(gone))

"""What can happen to a session; :func:`.lifecycle.step` says what becomes of it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .devices import Allocation
from .ids import AgentId, KernelId, SessionId
from .sessions import Place, Reason, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    cause: str
    """What started this (a request id, a pass number); copied onto every change and log line."""
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(_Event):
    """The scheduler found a place for every kernel."""

    where: Mapping[KernelId, tuple[AgentId, Allocation]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProgressed(_Event):
    """An agent is working on a kernel: PREPARING, PULLING or CREATING."""

    kernel_id: KernelId
    attempt: int
    status: Status
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStarted(_Event):
    """A kernel's runner answers (or its container runs, where there is no runner)."""

    kernel_id: KernelId
    attempt: int
    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEnded(_Event):
    """A kernel is gone and holds nothing on its node any more, whatever the cause."""

    kernel_id: KernelId
    attempt: int
    reason: Reason
    message: str = ""
    exit_code: int | None = None
    retryable: bool = False
    """Of a failed start: whether another try may do better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupFinished(_Event):
    """A batch session's startup command is done."""

    exit_code: int
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminateRequested(_Event):
    """Somebody wants the session to end."""

    reason: Reason = Reason.USER_REQUESTED
    message: str = ""
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nominated(_Event):
    """A place is being made for a session that waits: others are ended for it."""

    where: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptRequested(_Event):
    """A more important session needs the room."""

    beneficiary: SessionId
    message: str
    reschedule: bool
    """Put the session back into the queue once nothing of it is left."""
    grace_s: float | None = None
    next_place: Place = field(default_factory=dict)
    """Of a session that is moved: the place that is kept for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRequested(_Event):
    """The user wants fresh containers at the same place, with the same files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed(_Event):
    """The session has another name from now on."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLost(_Event):
    """A node has been away for longer than it may."""

    agent_id: AgentId


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineExpired(_Event):
    """The state that was entered at ``status_at`` has lasted too long, and the agents know no better."""

    status: Status
    status_at: float
    message: str = ""
    """What to say of it, where more is known than the state."""


Event = (
    Placed
    | KernelProgressed
    | KernelStarted
    | KernelEnded
    | StartupFinished
    | TerminateRequested
    | Nominated
    | PreemptRequested
    | RestartRequested
    | Renamed
    | AgentLost
    | DeadlineExpired
)

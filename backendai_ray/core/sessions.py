"""Sessions and kernels: what was asked for, and where it stands.

A *session* is what a person asks for; a *kernel* is one container of it. A gang is a session of several kernels
(``main1``, ``sub1``, ``sub2`` …) that start and end together. How they move is :mod:`.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .devices import Allocation
from .ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from .slots import ResourceSlots


class SessionType(StrEnum):
    """What a session is for."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    INFERENCE = "inference"
    SYSTEM = "system"


class ClusterMode(StrEnum):
    """Whether a gang's kernels must share a node."""

    SINGLE_NODE = "single-node"
    MULTI_NODE = "multi-node"


class SessionResult(StrEnum):
    """How a session's own work ended."""

    UNDEFINED = "undefined"
    SUCCESS = "success"
    FAILURE = "failure"


class DependencyFailure(StrEnum):
    """What becomes of a session when one that it depends on has failed."""

    CANCEL = "cancel"
    START_ANYWAY = "start-anyway"
    """Its end is enough, whatever it was."""


class Status(StrEnum):
    """Where a session or a kernel stands; the original's names."""

    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    PREPARING = "PREPARING"
    PULLING = "PULLING"
    CREATING = "CREATING"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"


TERMINAL = frozenset({Status.TERMINATED, Status.CANCELLED, Status.ERROR})
STARTING = frozenset({Status.SCHEDULED, Status.PREPARING, Status.PULLING, Status.CREATING})


class Reason(StrEnum):
    """Why a status was entered; every status has one, and beside it a sentence."""

    SUBMITTED = "submitted"
    WAITING = "waiting-for-resources"
    PLACED = "placed"
    PROGRESS = "progress"
    STARTED = "started"
    USER_REQUESTED = "user-requested"
    FORCED = "force-terminated"
    TASK_FINISHED = "task-finished"
    TASK_FAILED = "task-failed"
    TASK_TIMEOUT = "task-timeout"
    SELF_TERMINATED = "self-terminated"
    OUT_OF_MEMORY = "out-of-memory"
    CONTAINER_LOST = "container-lost"
    AGENT_LOST = "agent-lost"
    START_FAILED = "start-failed"
    START_TIMEOUT = "start-timeout"
    IMAGE_NOT_FOUND = "image-not-found"
    PENDING_TIMEOUT = "pending-timeout"
    DEPENDENCY_FAILED = "dependency-failed"
    PEER_ENDED = "another-kernel-ended"
    RETRY = "retry"
    RESTART = "restart"
    PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What was asked for; fixed at submission, but for the name."""

    id: SessionId
    name: str
    access_key: AccessKey
    domain: str = "default"
    project: str = "default"
    user: str = ""
    type: SessionType = SessionType.INTERACTIVE
    image: str
    architecture: str = ""
    """Empty: any."""
    resource_group: ResourceGroupName = ResourceGroupName("default")
    slots: ResourceSlots
    """Of each kernel."""
    shmem_bytes: int = 64 * 2**20
    cluster_size: int = 1
    cluster_mode: ClusterMode = ClusterMode.SINGLE_NODE
    environ: Mapping[str, str] = field(default_factory=dict)
    startup_command: str = ""
    bootstrap_script: str = ""
    runtime: str = ""
    """What runs its cells; empty: the image's default."""
    batch_timeout_s: float | None = None
    priority: int = 10
    starts_at: float | None = None
    depends_on: tuple[SessionId, ...] = ()
    dependency_failure: DependencyFailure = DependencyFailure.CANCEL
    pending_timeout_s: float | None = None
    """How long it may wait for a place; ``None``: as long as its resource group lets it."""
    designated_agents: tuple[AgentId, ...] = ()
    preopen_ports: tuple[int, ...] = ()
    callback_url: str = ""
    tag: str = ""
    requeue: bool | None = None
    """Whether it may be ended and run anew from its beginning to make room; ``None``: batch sessions may."""

    @property
    def may_requeue(self) -> bool:
        """Whether a preempted session goes back into the queue where the resource group's policy asks for that."""
        return self.type is SessionType.BATCH if self.requeue is None else self.requeue


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One container of a session."""

    id: KernelId
    role: str
    index: int
    """From 1 within the role."""
    status: Status = Status.PENDING
    reason: Reason = Reason.SUBMITTED
    message: str = ""
    agent_id: AgentId | None = None
    allocation: Allocation = Allocation()
    container_id: str = ""
    exit_code: int | None = None
    placed_at: float | None = None
    """Since when it holds its devices."""
    started_at: float | None = None
    terminated_at: float | None = None

    @property
    def hostname(self) -> str:
        """The name under which the other kernels of the gang reach this one."""
        return f"{self.role}{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """How a preempted session is being ended, and for whom."""

    beneficiary: SessionId
    """The waiting session that gets the room."""
    reschedule: bool
    """Whether it goes back into the queue afterwards."""
    grace_s: float | None = None
    """How long its processes have between the notice and the kill; ``None``: as long as at any end."""


Place = Mapping[KernelId, tuple[AgentId, Allocation]]
"""Where each kernel of a session goes, down to devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session and its kernels, as one consistent record; times are Unix seconds."""

    spec: SessionSpec
    kernels: tuple[Kernel, ...]
    status: Status = Status.PENDING
    reason: Reason = Reason.SUBMITTED
    message: str = ""
    """The sentence beside the reason."""
    result: SessionResult = SessionResult.UNDEFINED
    version: int = 0
    """Counts changes; a plan made for an older version is refused."""
    attempt: int = 1
    """Counts placements; a failed start of the kind that may pass is tried again elsewhere."""
    epoch: int = 0
    """Counts renames and restarts: a route looked up before is stale afterwards."""
    preemptions: int = 0
    """How often it was ended for a more important session and went back into the queue."""
    eviction: Eviction | None = None
    """Set while (and after) it is ended by a preemption."""
    nominated: Place = field(default_factory=dict)
    """The place that is being made for it while it waits; nobody of its priority or a lower one may take it."""
    created_at: float = 0.0
    status_at: float = 0.0
    """When the status was entered."""
    started_at: float | None = None
    terminated_at: float | None = None
    exit_code: int | None = None

    @property
    def id(self) -> SessionId:
        return self.spec.id

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def main(self) -> Kernel:
        """The kernel that executes what the user sends."""
        return self.kernels[0]

    def kernel(self, kernel_id: KernelId) -> Kernel | None:
        """Return the kernel with that id, if it is one of ours."""
        return next((k for k in self.kernels if k.id == kernel_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """All that an agent needs to make one kernel, and to find it again after a crash."""

    kernel_id: KernelId
    session_id: SessionId
    session_name: str
    access_key: AccessKey
    session_type: SessionType
    image: str
    architecture: str
    role: str
    index: int
    hostname: str
    cluster_hosts: tuple[str, ...]
    """Host names of the whole gang, ``main1`` first."""
    slots: ResourceSlots
    allocation: Allocation
    shmem_bytes: int
    environ: Mapping[str, str]
    bootstrap_script: str = ""
    runtime: str = ""
    preopen_ports: tuple[int, ...] = ()
    epoch: int = 0
    attempt: int = 1

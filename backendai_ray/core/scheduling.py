"""The scheduling interface: a snapshot goes in, an ordered plan comes out, and nothing else happens.

``decide(snapshot) -> Plan`` is pure and deterministic. The live system, the dry run, the explanation and the
simulator call the same function. The Manager re-checks every line of a plan before it commits it, so a policy can
be wrong without doing harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .devices import Allocation, Device
from .ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from .quotas import Quota
from .sessions import ClusterMode, SessionType
from .slots import ResourceSlots
from .usage import Account, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSession:
    """A session that waits for a place."""

    id: SessionId
    version: int
    access_key: AccessKey
    domain: str
    project: str
    user: str
    type: SessionType
    priority: int
    submitted_at: float
    image: str
    architecture: str
    slots: ResourceSlots
    """Of each kernel."""
    kernel_ids: tuple[KernelId, ...]
    """``main1`` first; the length is the gang's size."""
    cluster_mode: ClusterMode
    designated_agents: tuple[AgentId, ...] = ()
    node_labels: tuple[tuple[str, str], ...] = ()
    """Names and values of labels that its nodes must have, sorted."""
    starts_at: float | None = None
    waiting_for: tuple[SessionId, ...] = ()
    """Dependencies that have not succeeded yet; not eligible while there are any."""
    avoid_agents: tuple[AgentId, ...] = ()
    """Where an earlier attempt failed; they come last."""
    time_limit_s: float | None = None
    """How long it may run at most, counted from its placement as nearly as can be known; ``None``: for ever."""
    expected_s: float | None = None
    """How long it will probably run, from its owner's last ones; ``None``: nothing is known."""
    nominated: tuple[KernelPlacement, ...] = ()
    """The place that is being made for it: sessions were ended for it there. Nobody of its priority or a lower one
    may take what is free of it."""
    preemptions: int = 0
    """How often it ran already and was put back into the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningKernel:
    """A kernel that holds devices."""

    kernel_id: KernelId
    session_id: SessionId
    agent_id: AgentId
    access_key: AccessKey
    project: str
    domain: str
    allocation: Allocation
    priority: int
    placed_at: float
    time_limit_s: float | None = None
    """How long its session may run at most; see :class:`PendingSession`."""
    expected_s: float | None = None
    """How long its session will probably run in all."""
    preemptible: bool = True
    """Whether its session may be ended for a more important one at all."""
    restarts_as: PendingSession | None = None
    """What its session would wait as, were it put back into the queue; ``None``: it cannot be."""
    ending: bool = False
    """It is being ended: its devices are held still, and come free by themselves."""
    ending_for: SessionId | None = None
    """The waiting session that it is being ended for."""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node on which sessions may be placed, with what is held there."""

    agent_id: AgentId
    architecture: str
    devices: tuple[Device, ...]
    held: Mapping[KernelId, Allocation] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    unschedulable: str = ""
    """Why nothing new may be placed here; empty when it may."""
    failures: int = 0
    """Starts that failed here lately; it comes after nodes with fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The world of one resource group at one moment, complete."""

    now: float
    resource_group: ResourceGroupName
    pending: Sequence[PendingSession]
    """In order of submission."""
    running: Sequence[RunningKernel]
    nodes: Sequence[Node]
    """Sorted by agent id."""
    quotas: Sequence[Quota] = ()
    """The limits that bind sessions; those of a scope that nobody here is in do no harm."""
    usage: Mapping[Account, Usage] = field(default_factory=dict)
    """What sessions that have ended used in this group, by account; an account's is the same object while it stands."""


class RefusalCode(StrEnum):
    """Why a session, or one node for it, was refused; each named once."""

    NO_NODES = "no-nodes"
    NOT_ENOUGH = "not-enough"
    TOO_LARGE = "too-large-for-any-node"
    FRAGMENTED = "fragmented"
    ARCHITECTURE = "architecture"
    LABELS = "labels"
    NOT_DESIGNATED = "not-designated"
    UNSCHEDULABLE = "node-unschedulable"
    GANG = "gang-does-not-fit-together"
    BEHIND_HEAD = "behind-the-head-of-the-queue"
    NOT_YET = "starts-later"
    DEPENDENCIES = "dependencies"
    QUOTA = "quota"
    POLICY_FAILED = "policy-failed"
    AWAITS_ROOM = "room-is-being-made"


@dataclass(frozen=True, slots=True)
class NodeRefusal:
    """Why one node cannot take a kernel of the session."""

    agent_id: AgentId
    code: RefusalCode
    message: str
    shortfall: ResourceSlots = ResourceSlots()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a session was not placed in this pass."""

    session_id: SessionId
    code: RefusalCode
    message: str
    """A sentence for the person who waits."""
    nodes: tuple[NodeRefusal, ...] = ()
    """Per node; a live pass may leave it empty, an explanation fills it."""
    ahead: int | None = None
    """How many that wait are tried before it; only an explanation says so."""
    behind: SessionId | None = None
    """Whose turn, or whose reservation, keeps it back; only an explanation says so."""


@dataclass(frozen=True, slots=True)
class KernelPlacement:
    """Where one kernel goes, down to devices."""

    kernel_id: KernelId
    agent_id: AgentId
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a whole session goes; all of it or nothing."""

    session_id: SessionId
    version: int
    """The session's version that was looked at."""
    kernels: tuple[KernelPlacement, ...]


@dataclass(frozen=True, slots=True)
class Preemption:
    """End (or put back into the queue) one session so that another can start."""

    victim: SessionId
    beneficiary: SessionId
    message: str
    reschedule: bool = False
    grace_s: float | None = None
    """How long the victim's processes have between the notice and the kill; ``None``: as at any end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order, and why the rest must wait."""

    placements: tuple[Placement, ...] = ()
    preemptions: tuple[Preemption, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    next_at: float | None = None
    """When the clock alone makes another decision worth while (a start time comes); Unix seconds."""
    warning: str = ""
    """What an administrator should know about how this plan came about: the policy failed and ``fifo`` decided."""
    nominations: tuple[Placement, ...] = ()
    """Where the beneficiaries of the preemptions go once the room is free, and where a session that is moved goes
    next; kept for them until then."""


class SchedulingPolicy(Protocol):
    """Decides which session starts next, and where.

    Must: be a pure, deterministic function of the snapshot; place each session at most once and completely; never
    use more of a device than is free in the snapshot and left over by its own earlier placements.
    Construction: ``Policy(selection=..., **options)``; an option it does not know is an ``InvalidParameter``.
    """

    name: str

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return an ordered plan."""
        ...

    def explain(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        """Return what ``decide`` does with one session, with a reason for every node that refuses it.

        Raises:
            SessionNotFound: it is not pending in the snapshot.
        """
        ...


class AgentSelection(Protocol):
    """Ranks the nodes that could take a kernel."""

    name: str

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first; all of them, none invented."""
        ...


# ── what the Manager tells a policy actor, so that its snapshot stays warm ─────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SessionQueued:
    """A session waits (again); replaces what was known of it."""

    session: PendingSession


@dataclass(frozen=True, slots=True)
class SessionUnqueued:
    """A session no longer waits: cancelled, or placed (then ``KernelHeld`` follow)."""

    session_id: SessionId


@dataclass(frozen=True, slots=True)
class KernelHeld:
    """A kernel holds devices from now on."""

    kernel: RunningKernel


@dataclass(frozen=True, slots=True)
class KernelEnding:
    """A kernel that holds devices is being ended; ``KernelFreed`` follows when they are free."""

    kernel_id: KernelId
    beneficiary: SessionId | None = None
    """The waiting session that it is ended for, if it is for one."""
    next_place: tuple[KernelPlacement, ...] = ()
    """Of a session that is moved: the whole of the place that is kept for it."""


@dataclass(frozen=True, slots=True)
class KernelFreed:
    """A kernel's devices are free again."""

    kernel_id: KernelId
    at: float = 0.0
    """Since when, Unix seconds: its account is charged until then."""


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """A node appeared or changed: everything about it but what is held there."""

    agent_id: AgentId
    unschedulable: str
    """Why nothing new may be placed here; empty when it may."""
    report: object
    """The :class:`~.reports.NodeReport`; between actors a one-element list with the object-store reference to it."""
    failures: int = 0
    """Starts that failed here lately, as the Manager counts them."""


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node left; kernels that were held there are freed by events of their own."""

    agent_id: AgentId


@dataclass(frozen=True, slots=True)
class UsageChanged:
    """What sessions of an account that have ended used; replaces what was known. Kernels freed later add to it."""

    account: Account
    usage: Usage


@dataclass(frozen=True, slots=True)
class QuotaChanged:
    """A quota was set, or its scope holds more or less in other groups; without limits it is no more."""

    quota: Quota


Change = (
    SessionQueued
    | SessionUnqueued
    | KernelHeld
    | KernelEnding
    | KernelFreed
    | NodeChanged
    | NodeGone
    | QuotaChanged
    | UsageChanged
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happened in one resource group after ``since``; or, with ``full``, the whole world instead.

    Numbers rise by one with every change and start anew with each Manager incarnation.
    """

    resource_group: ResourceGroupName
    incarnation: str
    upto: int
    full: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line of a plan that the Manager did not commit."""

    session_id: SessionId
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of a plan."""

    placed: tuple[SessionId, ...]
    rejected: tuple[Rejection, ...]
    upto: int
    """The change number that the next snapshot must have reached."""
    preempted: tuple[SessionId, ...] = ()

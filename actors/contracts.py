"""What the actors say to each other.

Every call has a timeout at the caller, every change is idempotent and may come twice, late or out of order, and
arguments are frozen records from :mod:`backendai_ray.core`. :mod:`actors.peers` implements these protocols over Ray;
unit tests implement them with fakes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.execution import ExecMode, RunOutput
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.machine import Machine
from backendai_ray.core.measurements import NodeUsage
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.quotas import Limits, Scope, Use
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.runtimes import Runtime
from backendai_ray.core.scheduling import Applied, Changes, PendingSession, Plan
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import KernelSpec, Reason, Session, SessionSpec, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The way to a running session's main kernel; the agent refuses one whose epoch has passed (``StaleRoute``)."""

    session_id: SessionId
    kernel_id: KernelId
    agent_id: AgentId
    epoch: int

    @classmethod
    def to(cls, session: Session) -> Route | None:
        """Return the way to a session as it is; ``None`` while it does not run."""
        kernel = session.main
        if session.status is not Status.RUNNING or kernel.agent_id is None:
            return None
        return cls(session_id=session.id, kernel_id=kernel.id, agent_id=kernel.agent_id, epoch=session.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteRequest:
    """One execute call as the agent gets it."""

    route: Route
    run_id: str
    mode: ExecMode
    code: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    after_seq: int | None = None
    """Acknowledges output up to here; ``None``: whatever was handed out before counts as received."""
    wait_s: float = 2.0
    max_bytes: int = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One entry of a session's folder."""

    name: str
    kind: str
    """``file``, ``dir``, ``link`` or ``other``."""
    size: int
    mode: str
    modified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A download that an agent prepared; read it by offset, close it when done (it expires by itself)."""

    id: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The truth about a node, asked for after any restart and whenever a deadline passes."""

    agent_id: AgentId
    incarnation: str
    kernels: tuple[KernelFact, ...]
    """Everything of ours that is there: on its way, running, or ended and not yet acknowledged."""


class AgentContract(Protocol):
    """What an agent offers. It answers quickly; slow work goes on behind and is told by ``kernel_facts``."""

    async def ping(self) -> str:
        """Return the incarnation."""
        ...

    async def create_kernels(self, specs: Sequence[KernelSpec]) -> None:
        """Begin to make kernels; idempotent by ``(kernel_id, attempt)``.

        Returns when the order is recorded on the node's disk. A failed start is told as an ended kernel.
        """
        ...

    async def destroy_kernels(
        self, kernel_ids: Sequence[KernelId], reason: Reason, *, forced: bool = False, grace_s: float | None = None
    ) -> None:
        """Begin to end kernels; one that is unknown here is told as ended right away.

        ``forced`` kills at once; ``grace_s`` gives the processes that long between the notice and the kill, in place
        of the agent's own ``stop_grace_s``.
        """
        ...

    async def restart_kernels(self, kernel_ids: Sequence[KernelId], epoch: int) -> None:
        """Begin to give kernels a fresh container with the same devices and files; idempotent by epoch."""
        ...

    async def run_startup(self, kernel_id: KernelId, command: str, timeout_s: float | None) -> None:
        """Run the startup command once per kernel and attempt; its end is told as a fact."""
        ...

    async def update_route(self, kernel_id: KernelId, name: str, epoch: int) -> None:
        """From now on refuse routes of earlier epochs."""
        ...

    async def drop_spares(self) -> int:
        """Remove the containers that were started ahead, and make none until the next start; returns how many."""
        ...

    async def runtimes(self, image: str) -> Sequence[Runtime]:
        """Return what can run cells in an image of this node, the default first.

        Raises ImageNotFound where the node does not have it; nothing is pulled for this.
        """
        ...

    async def inspect(self) -> Inspection:
        """Return the truth."""
        ...

    async def usage(self, kernel_ids: Sequence[KernelId] | None = None) -> NodeUsage:
        """Return the last measurement of the node and of its kernels (or of these); measures nothing itself."""
        ...

    async def acknowledge(self, kernel_ids: Sequence[KernelId]) -> None:
        """The Manager has committed the end of these; the agent may forget them and delete what is left."""
        ...

    async def execute(self, request: ExecuteRequest) -> RunOutput:
        """Start, continue, feed or poll a run; a known run id never runs twice."""
        ...

    async def complete(self, route: Route, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Return completions of the code at the cursor."""
        ...

    async def interrupt(self, route: Route) -> None:
        """Interrupt what runs, as Ctrl-C does."""
        ...

    async def logs(self, kernel_id: KernelId) -> bytes:
        """Return the (bounded) log of a kernel that is there, or ended and not yet acknowledged."""
        ...

    async def list_files(self, route: Route, path: str) -> Sequence[FileEntry]:
        """List a folder of the session."""
        ...

    async def write_file(self, route: Route, path: str, offset: int, data: bytes, *, final: bool) -> None:
        """Write a chunk of an upload; the file appears under its name, whole, with the final chunk."""
        ...

    async def abort_write(self, route: Route, path: str) -> None:
        """Drop an upload that will not be finished."""
        ...

    async def open_download(self, route: Route, paths: Sequence[str], *, archive: bool) -> Transfer:
        """Prepare one file, or a tar of several."""
        ...

    async def read_download(self, transfer_id: str, offset: int, size: int) -> bytes:
        """Read a part of a prepared download."""
        ...

    async def close_download(self, transfer_id: str) -> None:
        """Drop a prepared download."""
        ...

    async def open_pty(self, route: Route, *, rows: int, cols: int, pty_id: str) -> None:
        """Open a terminal, or attach to the one of that id."""
        ...

    async def read_pty(self, route: Route, pty_id: str, after_seq: int, wait_s: float) -> tuple[int, bytes, bool]:
        """Return ``(seq, output, closed)``."""
        ...

    async def write_pty(self, route: Route, pty_id: str, data: bytes) -> None:
        """Type into a terminal."""
        ...

    async def resize_pty(self, route: Route, pty_id: str, *, rows: int, cols: int) -> None:
        """Tell a terminal its size."""
        ...

    async def close_pty(self, route: Route, pty_id: str) -> None:
        """Close a terminal."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRequest:
    """A validated draft of a session."""

    spec: SessionSpec
    """Its id is new; the Manager may answer with another session instead (idempotency key, reuse)."""
    reuse_if_exists: bool = False
    idempotency_key: str = ""
    request_id: str = ""
    starts_at_as_given: str = ""
    """A start time such as ``2h`` means another moment whenever it is read; the same request gives the same text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What a submit led to."""

    session: Session
    created: bool
    """False: an earlier session was returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keypair:
    """Who signs requests."""

    access_key: AccessKey
    secret_key: str
    user: str
    domain: str
    project: str
    is_active: bool
    is_admin: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a submit would lead to; exactly one of the two is there."""

    session: PendingSession | None = None
    """As the scheduler would see it."""
    reused: Session | None = None
    """The live session of that name that would be returned."""


class AgentStatus(StrEnum):
    """Whether a node takes part; the original's names."""

    ALIVE = "ALIVE"
    LOST = "LOST"
    TERMINATED = "TERMINATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """A node as the Manager knows it."""

    agent_id: AgentId
    status: AgentStatus
    resource_group: ResourceGroupName
    architecture: str
    backend: str
    capacity: Mapping[str, int]
    occupied: Mapping[str, int]
    schedulable: bool
    message: str
    """Why it is not schedulable, when it is not."""
    first_contact: float
    lost_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one kernel holds on a node."""

    kernel_id: KernelId
    session_id: SessionId
    session_name: str
    access_key: AccessKey
    hostname: str
    status: Status
    allocation: Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetail:
    """All that is known of one node."""

    view: AgentView
    devices: tuple[Device, ...]
    """Empty while the agent has not reported since the Manager's start."""
    machine: Machine
    images: tuple[str, ...]
    labels: Mapping[str, str]
    notes: tuple[str, ...]
    """Why some device is not offered as it could be."""
    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaView:
    """A quota, and how much of it is taken."""

    scope: Scope
    limits: Limits
    used: Use
    waiting: int
    """Sessions of the scope that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """Some sessions of a listing, newest first."""

    sessions: tuple[Session, ...]
    total: int


class ManagerContract(Protocol):
    """What the Manager offers. A change is acknowledged only after it is committed."""

    # for the front door
    async def keypair(self, access_key: str) -> Keypair | None: ...
    async def submit(self, request: SubmitRequest) -> Submitted: ...
    async def rehearse(self, request: SubmitRequest) -> Rehearsed:
        """Check a draft as :meth:`submit` does, and take nothing in."""
        ...

    async def session(self, access_key: AccessKey, name_or_id: str) -> Session:
        """Return the live session of that name, or any session of that id (or unique id prefix of 8 and more).

        A name whose sessions have all ended means the last one of them.
        """
        ...

    async def sessions(
        self, access_key: AccessKey | None, *, statuses: Sequence[str], limit: int, offset: int
    ) -> SessionPage: ...
    async def route(self, access_key: AccessKey, name_or_id: str) -> Route:
        """Raises SessionNotFound, SessionNotReady (with status and reason), SessionEnded."""
        ...

    async def wait(self, session_id: SessionId, statuses: Sequence[str], timeout_s: float) -> Session:
        """Return the session as soon as it is in one of the statuses or terminal; at the timeout, as it is."""
        ...

    async def terminate(
        self, access_key: AccessKey, name_or_id: str, *, forced: bool, recursive: bool, request_id: str
    ) -> Session: ...
    async def restart(self, access_key: AccessKey, name_or_id: str, *, request_id: str) -> Session: ...
    async def rename(self, access_key: AccessKey, name_or_id: str, name: str, *, request_id: str) -> Session: ...
    async def history(self, session_id: SessionId) -> Sequence[StatusChange]: ...
    async def scheduling_history(self, session_id: SessionId) -> Sequence[SchedulingEntry]: ...
    async def logs(self, access_key: AccessKey, name_or_id: str, kernel_id: KernelId | None) -> bytes: ...
    async def dependency_graph(self, access_key: AccessKey, name_or_id: str) -> Mapping[str, Any]: ...
    async def agents(self) -> Sequence[AgentView]: ...
    async def agent(self, agent_id: AgentId) -> NodeDetail:
        """Raises AgentNotFound."""
        ...

    async def quotas(self, access_key: AccessKey | None) -> Sequence[QuotaView]:
        """Return the quotas that bind a keypair; ``None``: all there are."""
        ...

    async def set_quota(self, scope: Scope, limits: Limits) -> QuotaView:
        """Replace a scope's limits, durably; limits that name nothing remove its quota."""
        ...

    # for agents
    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None:
        """Take a report: a one-element list with the object-store reference (or the record itself in tests).

        ``ready`` is false while the agent still recovers; it becomes schedulable once ready and reconciled.
        """
        ...

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None:
        """Take news of kernels; returns after the commit. The agent repeats what was not taken."""
        ...

    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None: ...

    # for Sokovan
    async def groups(self) -> Mapping[ResourceGroupName, Mapping[str, Any]]:
        """Return the resource groups with ``policy``, ``selection`` and ``options`` of each."""
        ...

    async def changes(self, group: ResourceGroupName, incarnation: str, since: int) -> Changes: ...
    async def apply(self, group: ResourceGroupName, plan: Plan, *, pass_id: str) -> Applied: ...


class SokovanContract(Protocol):
    """What Sokovan offers."""

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        """Something changed: run a pass soon. Cheap, coalesced, and safe to lose (a slow sweep asks anyway)."""
        ...

    async def explain(self, group: ResourceGroupName, session_id: SessionId) -> Explanation:
        """Return why a pending session waits (or where it goes if a pass ran now)."""
        ...

    async def rehearse(self, group: ResourceGroupName, session: PendingSession) -> Explanation:
        """Return what would become of a session if it were submitted now."""
        ...

    async def propose_moves(self, group: ResourceGroupName, request: MoveRequest, *, apply: bool) -> Proposal:
        """Return the moves that would let a waiting session start; with ``apply``, carry them out."""
        ...

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return by resource group what became of its passes, and the policy's ``warning``."""
        ...


class PolicyHostContract(Protocol):
    """What the policy actor of one resource group offers; it holds the snapshot warm and decides on it."""

    async def decide(self, changes: Changes, now: float) -> Plan | None:
        """Take the changes in and return a plan; ``None`` asks for the whole world (numbers do not join up)."""
        ...

    async def explain(self, session_id: SessionId, now: float) -> Explanation: ...
    async def rehearse(self, session: PendingSession, now: float) -> Explanation: ...
    async def propose_moves(self, request: MoveRequest, now: float) -> Proposal: ...
    async def position(self) -> tuple[str, int]:
        """Return ``(incarnation, upto)`` of the snapshot held."""
        ...

    async def configure(
        self, policy: str, selection: str, options: Mapping[str, Any], *, standing_in: str = ""
    ) -> None:
        """Switch the policy without losing the queue; ``standing_in``: why it decides in place of another."""
        ...


class FrontDoorContract(Protocol):
    """What a front door offers beside HTTP."""

    async def ping(self) -> str:
        """Return the incarnation."""
        ...

    async def address(self) -> str:
        """Return the URL, once it listens."""
        ...

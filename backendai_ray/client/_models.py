"""What the client returns: frozen records, read from the server's JSON.

Unknown keys are ignored and missing ones have a neutral value, so that an older client reads a newer server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backendai_ray.core.execution import OutputType, RunStatus
from backendai_ray.core.sessions import TERMINAL, Status
from backendai_ray.core.slots import format_amount


def _text(value: Any) -> Any:
    return "" if value is None else value


def _moment(value: Any) -> Any:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    return value or None


def _amounts(value: Any) -> Any:
    """Write bare numbers of bytes as people do; leave amounts that are written so already."""
    if not isinstance(value, dict):
        return value or {}
    texts = {slot: str(amount) for slot, amount in value.items()}
    return {slot: _size(slot, int(t)) if slot.endswith("mem") and t.isdigit() else t for slot, t in texts.items()}


def _size(slot: str, size: int) -> str:
    """Return ``512m`` for what is a round number of MiB, and what is near enough for a person for what is not."""
    return format_amount(slot, size) if size % 2**20 == 0 or size < 2**20 else f"{size / 2**30:.2f}g"


def _named(*names: str) -> Any:
    return AliasChoices(*names)


Amounts = Annotated[Mapping[str, str], BeforeValidator(_amounts)]
Text = Annotated[str, BeforeValidator(_text)]
Moment = Annotated[datetime | None, BeforeValidator(_moment)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, alias_generator=to_camel)


Record = _Record
"""For the records that have files of their own."""


class KernelInfo(_Record):
    """One container of a session."""

    id: str = Field(validation_alias=_named("id", "kernelId"))
    hostname: Text = ""
    """The name under which the other kernels of the gang reach it: ``main1``, ``sub1``, …"""
    role: Text = ""
    index: int = 1
    status: Text = ""
    reason: Text = Field("", validation_alias=_named("reason", "statusInfo"))
    message: Text = ""
    agent_id: Text = ""
    container_id: Text = ""
    exit_code: int | None = None


class SessionInfo(_Record):
    """Where a session stands."""

    id: str = Field(validation_alias=_named("id", "sessionId"))
    name: Text = Field("", validation_alias=_named("name", "sessionName"))
    type: Text = ""
    image: Text = ""
    status: str
    reason: Text = Field("", validation_alias=_named("reason", "statusInfo"))
    message: Text = ""
    """The sentence beside the reason."""
    result: Text = ""
    exit_code: int | None = None
    cluster_size: int = 1
    cluster_mode: Text = ""
    resources: Amounts = Field(default_factory=dict, validation_alias=_named("resources", "requestedSlots"))
    """Of each kernel."""
    created_at: Moment = Field(None, validation_alias=_named("created_at", "creationTime"))
    started_at: Moment = None
    terminated_at: Moment = Field(None, validation_alias=_named("terminated_at", "terminationTime"))
    preemptions: int = 0
    """How often it was ended for a more important session and went back into the queue."""
    kernels: tuple[KernelInfo, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether code can be run in it now."""
        return self.status == Status.RUNNING

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in TERMINAL

    @property
    def where(self) -> tuple[str, ...]:
        """The nodes on which its kernels are."""
        return tuple(sorted({k.agent_id for k in self.kernels if k.agent_id}))


class SessionPage(_Record):
    """Some sessions of a listing, newest first."""

    items: tuple[SessionInfo, ...] = ()
    total: int = 0


class StatusChange(_Record):
    """One line of a session's history."""

    before: Text = ""
    after: Text = ""
    reason: Text = ""
    message: Text = ""
    at: Moment = None
    kernel_id: Text = ""
    """Empty: the session itself."""
    cause: Text = ""
    """Id of what started it, the same on everything that followed from it."""


class NodeRefusal(_Record):
    """Why one node cannot take a waiting session."""

    agent_id: Text = ""
    code: Text = ""
    message: Text = ""
    shortfall: Amounts = Field(default_factory=dict)


class StartEstimate(_Record):
    """When a session may start, if nothing new is submitted."""

    at: Moment = None
    """``None``: not known; :attr:`message` says why."""
    not_before: Moment = None
    """Where it is not known: how far was looked ahead in vain."""
    basis: Text = "unknown"
    """``now``, ``sessions-are-ending``, ``start-time``, ``time-limits``, ``predicted`` or ``unknown``."""
    message: Text = ""


class PlacedKernel(_Record):
    """Where one container goes."""

    kernel_id: Text = ""
    agent_id: Text = ""
    devices: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)
    """Units by slot and device."""


class Move(_Record):
    """One session that goes somewhere else so that another can start; it runs again from its beginning."""

    session_id: Text = ""
    from_agents: tuple[str, ...] = ()
    to_agents: tuple[str, ...] = ()
    ran_s: float = 0.0
    """How long it has run; that work is lost."""


class Proposal(_Record):
    """The moves that let a waiting session start, or why there are none."""

    session_id: Text = ""
    session_name: Text = ""
    message: Text = ""
    moves: tuple[Move, ...] = ()
    """Empty: nothing is proposed."""
    agents: tuple[str, ...] = ()
    """Where the waiting session goes then."""
    applied: bool = False
    """The sessions named are being moved."""


class Explanation(_Record):
    """Why a session waits, where it would go, or why it is in its status."""

    session_id: Text = ""
    """Empty: of a rehearsal, which makes no session."""
    session_name: Text = ""
    status: Text = ""
    code: Text = Field("", validation_alias=_named("code", "reason"))
    """The binding reason; ``placeable`` when there is room now."""
    message: Text = ""
    position: int | None = None
    """Its place in the order in which sessions are tried, from 1."""
    waiting: int = 0
    """How many sessions wait in its resource group."""
    behind: Text = ""
    """The session whose turn, or whose reservation, keeps it back."""
    closest: NodeRefusal | None = None
    """The node that lacks least, where room is what is missing."""
    fragmentation: Text = "none"
    """``within-node``, ``across-nodes`` or ``none``: whether enough is free, but in pieces."""
    estimate: StartEstimate | None = None
    """Of a session that waits."""
    placement: tuple[PlacedKernel, ...] = ()
    """Where it goes, if there is room now."""
    nodes: tuple[NodeRefusal, ...] = ()
    policy: Text = ""
    warning: Text = ""
    """Why another policy decides in place of the configured one."""

    @property
    def is_placeable(self) -> bool:
        """Whether it starts with the next pass."""
        return bool(self.placement)


class SchedulingEntry(_Record):
    """What the scheduler told a session from a moment on, until the next entry or the next status."""

    number: int = 0
    """From 1; only the last entries are kept."""
    verdict: Text = ""
    """``refused`` by the policy, or placed by it and ``rejected`` by the Manager, because the world had moved on."""
    code: Text = ""
    message: Text = ""
    at: Moment = None
    cause: Text = ""
    """The scheduling pass."""


class DependencyNode(_Record):
    """A session and, nested, the sessions that it depends on."""

    id: str = Field(validation_alias=_named("id", "session_id", "sessionId"))
    name: Text = Field("", validation_alias=_named("name", "session_name", "sessionName"))
    status: Annotated[str, BeforeValidator(lambda text: str(text or "").rpartition(".")[2])] = ""
    status_changed: Text = Field("", validation_alias=_named("status_changed", "statusChanged"))
    result: Text = ""
    depends_on: tuple[DependencyNode, ...] = Field((), validation_alias=_named("depends_on", "dependsOn"))
    is_complete: bool = Field(True, validation_alias=_named("is_complete", "isComplete"))
    """False: what it depends on is shown elsewhere in the graph, or the graph is larger than is shown."""


class NodeInfo(_Record):
    """A node and what it has."""

    id: str = Field(validation_alias=_named("id", "agentId", "agent_id"))
    status: Text = ""
    resource_group: Text = Field("", validation_alias=_named("resource_group", "resourceGroup", "scalingGroup"))
    architecture: Text = ""
    backend: Text = ""
    capacity: Amounts = Field(default_factory=dict, validation_alias=_named("capacity", "availableSlots"))
    occupied: Amounts = Field(default_factory=dict, validation_alias=_named("occupied", "occupiedSlots"))
    schedulable: bool = True
    message: Text = ""
    """Why nothing new is placed there, when nothing is."""


class RuntimeInfo(_Record):
    """What can run code in an image: ``python``, ``shell``, or a Jupyter kernel."""

    name: str
    language: Text = ""
    title: Text = ""
    is_default: bool = Field(False, validation_alias=_named("is_default", "isDefault"))


class GroupInfo(_Record):
    """A resource group and how it is scheduled."""

    name: Text = ""
    policy: Text = ""
    selection: Text = ""
    options: dict[str, Any] = Field(default_factory=dict)
    waiting: int = 0
    """Sessions that the last pass could not place."""
    warning: Text = ""
    """What is wrong with its scheduling: the policy failed and ``fifo`` decides, or passes fail; empty when all is
    well."""


class QuotaInfo(_Record):
    """What the sessions of a keypair, user, project or domain may hold together, and what they hold."""

    scope: Text = ""
    name: Text = ""
    slots: Amounts = Field(default_factory=dict)
    sessions: int | None = None
    pending: int | None = None
    used_slots: Amounts = Field(default_factory=dict, validation_alias=_named("used_slots", "usedSlots"))
    used_sessions: int = Field(0, validation_alias=_named("used_sessions", "usedSessions"))
    used_pending: int = Field(0, validation_alias=_named("used_pending", "usedPending"))


class FileInfo(_Record):
    """One entry of a session's folder."""

    name: str = Field(validation_alias=_named("name", "filename"))
    kind: Text = "file"
    """``file``, ``dir``, ``link`` or ``other``."""
    size: int = 0
    """In bytes."""
    mode: Text = ""
    modified_at: Moment = Field(None, validation_alias=_named("modified_at", "modifiedAt", "mtime"))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a session or a kernel."""

    id: str
    """Pass it as ``last_event_id`` to go on after this event."""
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of a run's output, in the order in which the program wrote."""

    type: OutputType
    data: str
    mime: str = ""
    """Of media: the content's type; binary content is base64."""


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A program waits for a line of input."""

    is_password: bool = False
    prompt: str = ""
    """The line of output that the program has begun, which is usually its question."""


@dataclass(frozen=True)
class RunResult:
    """How a run went, with all of its output."""

    run_id: str
    status: RunStatus
    exit_code: int | None
    console: tuple[OutputChunk, ...] = ()
    phases: Mapping[str, int | None] = field(default_factory=dict)
    """Exit codes of the steps of a batch run that ended: ``clean``, ``build``."""

    @property
    def ok(self) -> bool:
        """Whether it finished with exit code 0."""
        return self.status == RunStatus.FINISHED and not self.exit_code

    @cached_property
    def stdout(self) -> str:
        """All of its standard output."""
        return self._text(OutputType.STDOUT)

    @cached_property
    def stderr(self) -> str:
        """All of its standard error."""
        return self._text(OutputType.STDERR)

    @cached_property
    def html(self) -> tuple[str, ...]:
        """Its HTML outputs."""
        return tuple(c.data for c in self.console if c.type == OutputType.HTML)

    @cached_property
    def media(self) -> tuple[tuple[str, str], ...]:
        """Its images and the like, as ``(mime type, content)``; binary content is base64."""
        return tuple((c.mime, c.data) for c in self.console if c.type == OutputType.MEDIA)

    def _text(self, kind: OutputType) -> str:
        return "".join(c.data for c in self.console if c.type == kind)

"""Sessions as the API shows them: the official field names first, ours after them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Kernel, Session
from backendai_ray.core.slots import total


class Answer(BaseModel):
    """What all answers have in common: the official names are in camel case."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


def iso(at: float | None) -> str | None:
    """Return a moment as ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


class KernelView(Answer):
    """One container of a session."""

    kernel_id: str
    role: str
    index: int
    hostname: str
    status: str
    status_info: str
    message: str
    agent_id: str | None
    container_id: str
    exit_code: int | None
    occupied_slots: dict[str, str]
    devices: dict[str, dict[str, int]] = Field(description="Units by slot and device.")
    started_at: str | None
    terminated_at: str | None

    @classmethod
    def of(cls, kernel: Kernel) -> KernelView:
        """Show a kernel."""
        slots = {slot for slot, _, _ in kernel.allocation.parts}
        return cls(
            kernel_id=kernel.id,
            role=kernel.role,
            index=kernel.index,
            hostname=kernel.hostname,
            status=kernel.status,
            status_info=kernel.reason,
            message=kernel.message,
            agent_id=kernel.agent_id,
            container_id=kernel.container_id,
            exit_code=kernel.exit_code,
            occupied_slots=kernel.allocation.slots().plain(),
            devices={slot: dict(kernel.allocation.devices(slot)) for slot in sorted(slots)},
            started_at=iso(kernel.started_at),
            terminated_at=iso(kernel.terminated_at),
        )


class SessionView(Answer):
    """A session."""

    session_id: str
    session_name: str
    type: str
    status: str
    status_info: str = Field(description="Why it is in this status, as a word.")
    message: str = Field(description="Why, as a sentence.")
    result: str = Field(description="How the session's own work ended.")
    exit_code: int | None
    image: str
    architecture: str
    domain_name: str
    group_name: str
    user: str
    access_key: str
    tag: str
    priority: int
    scaling_group: str
    cluster_size: int
    cluster_mode: str
    requested_slots: dict[str, str] = Field(description="Of each container; bytes for memory.")
    occupied_slots: dict[str, str] = Field(description="Of all containers now.")
    resource_opts: dict[str, str]
    environ: dict[str, str]
    startup_command: str
    dependencies: list[str]
    dependency_failure: str = Field(description="What happens when a dependency fails: `cancel` or `start-anyway`.")
    starts_at: str | None = Field(description="Not before this.")
    batch_timeout: float | None = Field(description="Longest run of a batch session, in seconds.")
    pending_timeout: float | None = Field(
        description="How long it may wait for a place, in seconds; `null`: as its resource group says."
    )
    service_ports: list[dict[str, Any]] = Field(default_factory=list)
    container_id: str = Field(description="Of the main container.")
    creation_time: str | None
    status_changed: str | None
    started_at: str | None
    termination_time: str | None
    age: int = Field(description="Milliseconds since it was created.")
    attempt: int = Field(description="Counts placements.")
    preemptions: int = Field(description="How often it was ended for another session and went back into the queue.")
    kernels: list[KernelView]

    @classmethod
    def of(cls, session: Session, now: float) -> SessionView:
        """Show a session."""
        spec = session.spec
        return cls(
            session_id=spec.id,
            session_name=spec.name,
            type=spec.type,
            status=session.status,
            status_info=session.reason,
            message=session.message,
            result=session.result,
            exit_code=session.exit_code,
            image=spec.image,
            architecture=spec.architecture,
            domain_name=spec.domain,
            group_name=spec.project,
            user=spec.user,
            access_key=spec.access_key,
            tag=spec.tag,
            priority=spec.priority,
            scaling_group=spec.resource_group,
            cluster_size=spec.cluster_size,
            cluster_mode=spec.cluster_mode,
            requested_slots=spec.slots.plain(),
            occupied_slots=total(k.allocation.slots() for k in session.kernels if k.terminated_at is None).plain(),
            resource_opts={"shmem": str(spec.shmem_bytes)},
            environ=dict(spec.environ),
            startup_command=spec.startup_command,
            dependencies=list(spec.depends_on),
            dependency_failure=spec.dependency_failure,
            starts_at=iso(spec.starts_at),
            batch_timeout=spec.batch_timeout_s,
            pending_timeout=spec.pending_timeout_s,
            container_id=session.main.container_id,
            creation_time=iso(session.created_at),
            status_changed=iso(session.status_at),
            started_at=iso(session.started_at),
            termination_time=iso(session.terminated_at),
            age=max(0, int(((session.terminated_at or now) - session.created_at) * 1000)),
            attempt=session.attempt,
            preemptions=session.preemptions,
            kernels=[KernelView.of(kernel) for kernel in session.kernels],
        )


class SessionList(Answer):
    """Some sessions, newest first."""

    items: list[SessionView]
    total: int


class KernelList(Answer):
    """The containers of a session, the main one first."""

    items: list[KernelView]


class Destroyed(Answer):
    """A session that ends, or has ended."""

    session_id: str
    status: str
    message: str
    stats: dict[str, Any] = Field(default_factory=dict, description="Kept for the official client; none yet.")


class ChangeView(Answer):
    """One line of the status history."""

    kernel_id: str | None
    before: str
    after: str
    reason: str
    message: str
    at: str | None
    cause: str

    @classmethod
    def of(cls, change: StatusChange) -> ChangeView:
        """Show a change."""
        return cls(
            kernel_id=change.kernel_id,
            before=change.before,
            after=change.after,
            reason=change.reason,
            message=change.message,
            at=iso(change.at),
            cause=change.cause,
        )


class History(Answer):
    """How a session moved."""

    result: dict[str, str | None] = Field(description="When each status was last entered, by its name in lower case.")
    changes: list[ChangeView] = Field(description="Every change, of the session and its containers, oldest first.")


class Logs(Answer):
    """A container's log."""

    result: dict[str, str] = Field(description="`logs` is the text.")

"""What a simulation is given."""

from __future__ import annotations

from dataclasses import dataclass

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession
from backendai_ray.core.sessions import ClusterMode, SessionType
from backendai_ray.core.slots import ResourceSlots


@dataclass(frozen=True, slots=True)
class Job:
    """A session of a trace and how long it runs once it has started."""

    session: PendingSession
    """Its ``submitted_at`` says when it comes."""
    duration_s: float


def make_job(
    name: str,
    slots: ResourceSlots,
    *,
    submitted_at: float,
    duration_s: float,
    owner: str = "anybody",
    project: str = "default",
    domain: str = "default",
    priority: int = 10,
    size: int = 1,
    mode: ClusterMode = ClusterMode.SINGLE_NODE,
    nodes: tuple[AgentId, ...] = (),
    time_limit_s: float | None = None,
) -> Job:
    """Return a job.

    Args:
        name: Unique within the trace.
        slots: What each of its kernels asks for.
        submitted_at: When it comes, seconds.
        duration_s: How long it runs; never longer than its limit.
        owner: Whose it is; policies see it as the access key and as the user.
        project: The project that the owner is in.
        domain: The domain that the project is in.
        priority: Higher goes first.
        size: How many kernels start together.
        mode: Whether they must share a node.
        nodes: The only nodes it may use; empty: all.
        time_limit_s: How long it may run.
    """
    session = PendingSession(
        id=SessionId(name),
        version=0,
        access_key=AccessKey(owner),
        domain=domain,
        project=project,
        user=owner,
        type=SessionType.BATCH,
        priority=priority,
        submitted_at=submitted_at,
        image="",
        architecture="",
        slots=slots,
        kernel_ids=tuple(KernelId(f"{name}/{index}") for index in range(size)),
        cluster_mode=mode,
        designated_agents=nodes,
        time_limit_s=time_limit_s,
    )
    return Job(session, duration_s if time_limit_s is None else min(duration_s, time_limit_s))


def format_error(file: str, line: int, field: str, problem: str) -> InvalidParameter:
    """Return the error for a line of a file that is not what its format says."""
    return InvalidParameter(f"{file}, line {line}: {field}: {problem}", field=field)

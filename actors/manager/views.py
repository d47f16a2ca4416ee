"""Sessions as others see them: the scheduler, the agents."""

from __future__ import annotations

from collections.abc import Sequence

from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.scheduling import KernelPlacement, PendingSession, RunningKernel
from backendai_ray.core.sessions import TERMINAL, Kernel, KernelSpec, Session, SessionType, Status


def pending_session(
    session: Session,
    *,
    waiting_for: Sequence[SessionId] = (),
    avoid: Sequence[AgentId] = (),
    expected_s: float | None = None,
) -> PendingSession:
    """Return a session that waits, or would were it put back into the queue, as the scheduler sees it."""
    spec = session.spec
    return PendingSession(
        id=spec.id,
        version=session.version,
        access_key=spec.access_key,
        domain=spec.domain,
        project=spec.project,
        user=spec.user,
        type=spec.type,
        priority=spec.priority,
        submitted_at=session.created_at,
        image=spec.image,
        architecture=spec.architecture,
        slots=spec.slots,
        kernel_ids=tuple(kernel.id for kernel in session.kernels),
        cluster_mode=spec.cluster_mode,
        designated_agents=spec.designated_agents,
        node_labels=tuple(sorted(spec.node_labels.items())),
        starts_at=spec.starts_at,
        waiting_for=tuple(waiting_for),
        avoid_agents=tuple(avoid),
        time_limit_s=_time_limit_s(session),
        expected_s=expected_s,
        nominated=nominated_place(session),
        preemptions=session.preemptions,
    )


def nominated_place(session: Session) -> tuple[KernelPlacement, ...]:
    """Return the place that is kept for a session."""
    return tuple(KernelPlacement(name, agent, held) for name, (agent, held) in session.nominated.items())


def _time_limit_s(session: Session) -> float | None:
    """Return how long a session may run; only batch sessions end by themselves."""
    return session.spec.batch_timeout_s if session.spec.type is SessionType.BATCH else None


def holds_devices(kernel: Kernel) -> bool:
    """Return whether a kernel's devices are taken: placed, and its end not confirmed."""
    return kernel.agent_id is not None and kernel.status not in TERMINAL


def placed_at(session: Session, kernel: Kernel) -> float:
    """Return since when a kernel holds its devices; records of an older version say only roughly when."""
    if kernel.placed_at is not None:
        return kernel.placed_at
    return session.status_at if kernel.started_at is None else kernel.started_at


def running_kernel(session: Session, kernel: Kernel, *, expected_s: float | None = None) -> RunningKernel:
    """Return a kernel that holds devices as the scheduler sees it."""
    if kernel.agent_id is None:
        raise ValueError(f"kernel {kernel.id} is not placed")
    ending = session.status is Status.TERMINATING
    return RunningKernel(
        kernel_id=kernel.id,
        session_id=session.id,
        agent_id=kernel.agent_id,
        access_key=session.spec.access_key,
        project=session.spec.project,
        domain=session.spec.domain,
        user=session.spec.user,
        allocation=kernel.allocation,
        priority=session.spec.priority,
        placed_at=placed_at(session, kernel),
        time_limit_s=_time_limit_s(session),
        expected_s=expected_s,
        preemptible=session.spec.type is not SessionType.SYSTEM,
        restarts_as=pending_session(session) if session.spec.may_requeue else None,
        ending=ending,
        ending_for=session.eviction.beneficiary if ending and session.eviction is not None else None,
    )


def kernel_spec(session: Session, kernel: Kernel) -> KernelSpec:
    """Return all that an agent needs to make the kernel; the same for the same attempt, whenever it is asked."""
    spec = session.spec
    return KernelSpec(
        kernel_id=kernel.id,
        session_id=spec.id,
        session_name=spec.name,
        access_key=spec.access_key,
        session_type=spec.type,
        image=spec.image,
        architecture=spec.architecture,
        role=kernel.role,
        index=kernel.index,
        hostname=kernel.hostname,
        cluster_hosts=tuple(member.hostname for member in session.kernels),
        slots=spec.slots,
        allocation=kernel.allocation,
        shmem_bytes=spec.shmem_bytes,
        environ=spec.environ,
        bootstrap_script=spec.bootstrap_script,
        runtime=spec.runtime,
        preopen_ports=spec.preopen_ports,
        epoch=session.epoch,
        attempt=session.attempt,
    )

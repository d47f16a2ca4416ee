"""Sessions with good defaults, and the changes that go with them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Kernel, Reason, Session, SessionSpec, Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots
from backendai_ray.store import Batch

OWNER = AccessKey("AKIAOWNER")


def new_session(
    name: str | None = None, *, owner: str = OWNER, size: int = 1, created_at: float = 1000.0, **spec: Any
) -> Session:
    session_id = SessionId(str(uuid.uuid4()))
    return Session(
        spec=SessionSpec(
            id=session_id,
            name=name or f"s-{session_id[:13]}",
            access_key=AccessKey(owner),
            image="python",
            slots=ResourceSlots({CPU: 1000, MEM: 2**28}),
            cluster_size=size,
            environ={"GREETING": "grüße \u2603", "EMPTY": ""},
            **spec,
        ),
        kernels=tuple(
            Kernel(id=KernelId(str(uuid.uuid4())), role="main" if n == 0 else "sub", index=max(n, 1))
            for n in range(size)
        ),
        created_at=created_at,
        status_at=created_at,
    )


def placed(session: Session, agent: str = "node-1") -> Session:
    kernels = tuple(
        replace(
            kernel,
            status=Status.RUNNING,
            agent_id=AgentId(agent),
            allocation=Allocation.of([(CPU, DeviceId(str(n)), 1000)]),
            container_id=f"c{n}",
        )
        for n, kernel in enumerate(session.kernels)
    )
    return replace(session, kernels=kernels, status=Status.RUNNING, version=session.version + 1)


def ended(session: Session, at: float = 2000.0, status: Status = Status.TERMINATED) -> Session:
    kernels = tuple(replace(kernel, status=status, terminated_at=at) for kernel in session.kernels)
    return replace(session, kernels=kernels, status=status, version=session.version + 1, terminated_at=at)


def change(session: Session, before: Status, message: str = "", kernel: int | None = None) -> StatusChange:
    return StatusChange(
        session_id=session.id,
        kernel_id=None if kernel is None else session.kernels[kernel].id,
        before=before,
        after=session.status,
        reason=Reason.PROGRESS,
        message=message,
        at=session.status_at,
        cause="test",
    )


def submission(session: Session) -> Batch:
    return Batch(sessions=(session,), changes=(change(session, Status.PENDING, "submitted"),))

"""What the scheduler is told of sessions."""

from __future__ import annotations

import pytest

from actors.manager.views import pending_session, running_kernel
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.sessions import Kernel, Session, SessionSpec, SessionType
from backendai_ray.core.slots import ResourceSlots


@pytest.mark.parametrize(
    ("type_", "limit_s"), [(SessionType.BATCH, 90.0), (SessionType.INTERACTIVE, None), (SessionType.INFERENCE, None)]
)
def test_only_batch_sessions_have_a_time_limit(type_: SessionType, limit_s: float | None) -> None:
    spec = SessionSpec(
        id=SessionId("s"),
        name="s",
        access_key=AccessKey("AK"),
        image="python",
        slots=ResourceSlots.parse({"cpu": 1}),
        type=type_,
        batch_timeout_s=90.0,
        priority=30,
    )
    kernel = Kernel(id=KernelId("k"), role="main", index=1, agent_id=AgentId("a"), placed_at=7.0)
    session = Session(spec=spec, kernels=(kernel,), created_at=5.0)
    waiting, running = pending_session(session), running_kernel(session, kernel)
    assert (waiting.time_limit_s, waiting.priority, waiting.submitted_at) == (limit_s, 30, 5.0)
    assert (running.time_limit_s, running.priority, running.placed_at) == (limit_s, 30, 7.0)

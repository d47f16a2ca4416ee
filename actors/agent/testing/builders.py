"""Records with sensible defaults, for whoever drives an agent without a Manager: tests and benches."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from backendai_ray.config import MIB
from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.sessions import KernelSpec, SessionType


def kernel_spec_of(allocation: Allocation, **changes: Any) -> KernelSpec:
    """Return the spec of a new single kernel that holds these devices."""
    spec = KernelSpec(
        kernel_id=KernelId(str(uuid.uuid4())),
        session_id=SessionId(str(uuid.uuid4())),
        session_name="test",
        access_key=AccessKey("AK"),
        session_type=SessionType.INTERACTIVE,
        image="python",
        architecture="",
        role="main",
        index=1,
        hostname="main1",
        cluster_hosts=("main1",),
        slots=allocation.slots(),
        allocation=allocation,
        shmem_bytes=64 * MIB,
        environ={},
    )
    return replace(spec, **changes)

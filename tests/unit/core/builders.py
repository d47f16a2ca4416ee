"""Sessions with good defaults, for tests of the domain."""

from __future__ import annotations

from typing import Any

from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, SessionId
from backendai_ray.core.sessions import Kernel, Session, SessionSpec, SessionType
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

GIB = 2**30


def a_spec(**changes: Any) -> SessionSpec:
    defaults: dict[str, Any] = {
        "id": SessionId("00000000-0000-4000-8000-000000000001"),
        "name": "work",
        "access_key": AccessKey("AKIATEST"),
        "image": "python",
        "slots": ResourceSlots({CPU: 1000, MEM: GIB}),
    }
    return SessionSpec(**{**defaults, **changes})


def a_session(size: int = 1, **spec: Any) -> Session:
    kernels = tuple(
        Kernel(id=KernelId(f"k{i}"), role="main" if i == 0 else "sub", index=max(1, i)) for i in range(size)
    )
    return Session(spec=a_spec(cluster_size=size, **spec), kernels=kernels, created_at=1.0, status_at=1.0)


def a_batch(size: int = 1, **spec: Any) -> Session:
    return a_session(size, type=SessionType.BATCH, startup_command="true", **spec)


def one_core(device: str) -> Allocation:
    return Allocation.of([(CPU, DeviceId(device), 1000), (MEM, DeviceId("0"), GIB)])


def everywhere(session: Session, *agents: str) -> dict[KernelId, tuple[AgentId, Allocation]]:
    """A place for every kernel, the agents taken in turn."""
    names = agents or ("a1",)
    return {kernel.id: (AgentId(names[i % len(names)]), one_core(str(i))) for i, kernel in enumerate(session.kernels)}

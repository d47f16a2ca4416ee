"""What must be done after a session has changed; the Manager carries it out once the change is committed."""

from __future__ import annotations

from dataclasses import dataclass

from .ids import AgentId, KernelId
from .sessions import Reason


@dataclass(frozen=True, slots=True)
class CreateKernels:
    """Ask the agents to make all kernels that are placed."""


@dataclass(frozen=True, slots=True)
class DestroyKernels:
    """Ask the agents to end these kernels and to say so when nothing of them is left."""

    kernels: tuple[tuple[KernelId, AgentId], ...]
    reason: Reason
    forced: bool = False
    grace_s: float | None = None
    """How long the processes have between the notice and the kill; ``None``: as the agent's settings say."""


@dataclass(frozen=True, slots=True)
class RestartKernels:
    """Ask the agents for fresh containers of these kernels."""

    kernels: tuple[tuple[KernelId, AgentId], ...]


@dataclass(frozen=True, slots=True)
class ReleaseDevices:
    """What this kernel held is free; the scheduler should know."""

    kernel_id: KernelId
    agent_id: AgentId


@dataclass(frozen=True, slots=True)
class Enqueue:
    """The session waits for a place (again)."""


@dataclass(frozen=True, slots=True)
class Dequeue:
    """The session does not wait any more."""


@dataclass(frozen=True, slots=True)
class RunStartup:
    """Start the session's startup command in its main kernel."""


@dataclass(frozen=True, slots=True)
class UpdateRoute:
    """Tell the main kernel's agent the session's new name and epoch before anyone hears of success."""


Effect = CreateKernels | DestroyKernels | RestartKernels | ReleaseDevices | Enqueue | Dequeue | RunStartup | UpdateRoute

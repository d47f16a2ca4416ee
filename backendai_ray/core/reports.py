"""What an agent says of its node: sent when something changed, versioned, columnar.

A report travels through the object store: the agent puts it and passes only the reference on, and readers map the
columns without copying. ``(incarnation, version)`` orders the reports of one agent; an older one is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .devices import Allocation, Device
from .ids import AgentId, DeviceId, KernelId, ResourceGroupName
from .machine import Machine
from .sessions import Status
from .slots import SlotName

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """The devices of one node as columns of equal length."""

    slot: tuple[SlotName, ...]
    id: tuple[DeviceId, ...]
    capacity: NDArray[np.int64]
    numa_node: NDArray[np.int64]
    """-1 where unknown."""
    model: tuple[str, ...]
    attributes: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, devices: Sequence[Device]) -> DeviceTable:
        """Lay devices out as columns."""
        return cls(
            slot=tuple(d.slot for d in devices),
            id=tuple(d.id for d in devices),
            capacity=np.array([d.capacity for d in devices], dtype=np.int64),
            numa_node=np.array([-1 if d.numa_node is None else d.numa_node for d in devices], dtype=np.int64),
            model=tuple(d.model for d in devices),
            attributes=tuple(dict(d.attributes) for d in devices),
        )

    def devices(self) -> tuple[Device, ...]:
        """Return the rows."""
        return tuple(
            Device(slot, device, capacity, None if numa < 0 else numa, model, attributes)
            for slot, device, capacity, numa, model, attributes in zip(
                self.slot,
                self.id,
                self.capacity.tolist(),
                self.numa_node.tolist(),
                self.model,
                self.attributes,
                strict=True,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """A node as its agent sees it."""

    agent_id: AgentId
    incarnation: str
    """Made anew at each start of the agent process; a new one means: ask ``inspect()``."""
    version: int
    resource_group: ResourceGroupName
    architecture: str
    backend: str
    """``docker``, ``process`` or ``sim``."""
    devices: DeviceTable
    images: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    notes: tuple[str, ...] = ()
    """Why some device is not offered as it could be, a sentence each; the node is used all the same."""
    health: str = ""
    """Empty when all is well, else the sentence that says why nothing new should be placed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFact:
    """The truth about one kernel on a node, as ``Agent.inspect()`` answers and as its notices carry."""

    kernel_id: KernelId
    session_id: str
    status: Status
    """PREPARING, PULLING, CREATING, RUNNING, TERMINATING or TERMINATED."""
    reason: str = ""
    """A :class:`~.sessions.Reason` value once it ended."""
    message: str = ""
    exit_code: int | None = None
    container_id: str = ""
    allocation: Allocation = Allocation()
    attempt: int = 1
    retryable: bool = False
    """After a failed start: whether another node, or another try, may do better."""
    startup_exit_code: int | None = None
    """Of a batch session's startup command, once it has finished."""
    startup_timed_out: bool = False
    log_tail: bytes = b""
    """Of an ended kernel: the end of what its container printed, bounded by the agent."""
    has_record: bool = True
    """False for a container that the agent found and knows nothing else of; who wants it gives the order again."""

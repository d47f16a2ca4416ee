"""The nodes as the Manager knows them, and whether something new may be placed on each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.contracts import AgentStatus, AgentView
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.store import AgentRecord

FAILURE_HALF_LIFE_S = 600.0
"""After this a failed start counts half; one alone is then forgotten."""


@dataclass(slots=True)
class Node:
    """One node. What it has is the report's; what is here beside it is soft and found out again after a restart."""

    agent_id: AgentId
    first_contact: float
    last_seen: float
    group: ResourceGroupName = ResourceGroupName("default")
    architecture: str = ""
    backend: str = ""
    capacity: ResourceSlots = field(default_factory=ResourceSlots)
    """As last reported, also before the last restart."""
    incarnation: str = ""
    report: NodeReport | None = None
    handle: object = None
    """What the report travels in; passed on as it is."""
    is_ready: bool = False
    """The agent has recovered what runs on its node."""
    reconciled: str = ""
    """The incarnation whose kernels were last compared with what should run there."""
    reconciled_at: float = 0.0
    is_away: bool = False
    has_left: bool = False
    """Ray says that the machine is gone."""
    lost_at: float | None = None
    strays: set[KernelId] = field(default_factory=set)
    """Kernels that are there and that nobody wants; being destroyed."""
    past_incarnations: set[str] = field(default_factory=set)
    failures: float = 0.0
    """Starts that failed here; halves every :data:`FAILURE_HALF_LIFE_S` since ``failed_at``. Soft: not stored."""
    failed_at: float = 0.0
    recent_failures: int = 0
    """What is left of them, as last counted."""
    published: tuple[str, object] | None = None
    """What the scheduler was last told: why unschedulable, and which report with how many failures."""
    saved: AgentRecord | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def seen(self, now: float) -> None:
        """The agent was heard of."""
        self.last_seen = now
        self.has_left = False

    def take_report(self, report: NodeReport, handle: object, *, ready: bool) -> bool:
        """Take a report; returns False for one that is older than what is known."""
        if report.incarnation in self.past_incarnations:
            return False
        if report.incarnation == self.incarnation and self.report is not None:
            if report.version < self.report.version:
                return False
            ready = ready or self.is_ready
        elif report.incarnation != self.incarnation:
            self._new_incarnation(report.incarnation)
        self.report, self.handle, self.is_ready = report, handle, ready
        self.group = report.resource_group
        self.architecture, self.backend = report.architecture, report.backend
        return True

    def _new_incarnation(self, incarnation: str) -> None:
        if self.incarnation:
            self.past_incarnations.add(self.incarnation)
        self.incarnation = incarnation
        self.reconciled = ""

    @property
    def is_reconciled(self) -> bool:
        """Return whether what runs there was compared with what should, since the agent last started."""
        return bool(self.reconciled) and self.reconciled == self.incarnation

    def unschedulable(self) -> str:
        """Return why nothing new may be placed here; empty when it may."""
        if self.has_left:
            return "the node has left the cluster"
        if self.lost_at is not None:
            return "the node was away for too long and is looked at before it is used again"
        if self.is_away:
            return "the node's agent has not been heard of lately"
        if self.report is None:
            return "the node's agent has not reported yet"
        if not self.is_ready:
            return "the node's agent still finds out what runs there"
        if not self.is_reconciled:
            return "what runs on the node is being compared with what should"
        if self.strays:
            return f"{len(self.strays)} kernels that nobody needs any more are being removed"
        return self.report.health

    def start_failed(self, now: float) -> None:
        """A kernel did not start here."""
        self.failures, self.failed_at = self._failures_left(now) + 1.0, now
        self.count_failures(now)

    def count_failures(self, now: float) -> bool:
        """Count how many starts failed here lately, each less the longer it is ago; returns whether that changed."""
        before, self.recent_failures = self.recent_failures, round(self._failures_left(now))
        return before != self.recent_failures

    def _failures_left(self, now: float) -> float:
        halves = max(0.0, now - self.failed_at) / FAILURE_HALF_LIFE_S
        return float(self.failures * 0.5**halves)

    def record(self) -> AgentRecord:
        """Return what of this must survive."""
        return AgentRecord(
            agent_id=self.agent_id,
            resource_group=self.group,
            first_contact=self.first_contact,
            lost_at=self.lost_at,
            incarnation=self.incarnation,
            architecture=self.architecture,
            backend=self.backend,
            capacity=self.capacity.to_json(),
        )

    def view(self, occupied: ResourceSlots) -> AgentView:
        """Return the node as people see it."""
        status = AgentStatus.ALIVE
        if self.lost_at is not None:
            status = AgentStatus.LOST
        elif self.has_left:
            status = AgentStatus.TERMINATED
        why_not = self.unschedulable()
        return AgentView(
            agent_id=self.agent_id,
            status=status,
            resource_group=self.group,
            architecture=self.architecture,
            backend=self.backend,
            capacity=self.capacity.to_json(),
            occupied=occupied.to_json(),
            schedulable=not why_not,
            message=why_not,
            first_contact=self.first_contact,
            lost_at=self.lost_at,
        )


class Nodes:
    """All nodes that were ever there."""

    def __init__(self) -> None:
        self._nodes: dict[AgentId, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(sorted(self._nodes.values(), key=lambda node: node.agent_id))

    def get(self, agent_id: AgentId) -> Node | None:
        return self._nodes.get(agent_id)

    def meet(self, agent_id: AgentId, now: float) -> Node:
        """Return the node, noting it when it is new."""
        node = self._nodes.get(agent_id)
        if node is None:
            node = self._nodes[agent_id] = Node(agent_id=agent_id, first_contact=now, last_seen=now)
        return node

    def restore(self, record: AgentRecord, now: float) -> None:
        """Take a node over from the store; its agent gets its full time to say that it is there."""
        self._nodes[record.agent_id] = Node(
            agent_id=record.agent_id,
            first_contact=record.first_contact,
            last_seen=now,
            group=record.resource_group,
            architecture=record.architecture,
            backend=record.backend,
            capacity=ResourceSlots(record.capacity),
            lost_at=record.lost_at,
            is_away=record.lost_at is not None,
            saved=record,
        )

    def of_group(self, group: ResourceGroupName) -> list[Node]:
        """Return the nodes of a group that are known to have something, there or not."""
        return [node for node in self if node.group == group and node.capacity]

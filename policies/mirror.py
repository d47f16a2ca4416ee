"""The warm world of one resource group: kept up to date from numbered changes, handed out as snapshots.

Taking in a change costs what the change touches; a node that did not change is the same object in the next snapshot,
which is how policies keep their own columns warm (:class:`.columns.RoomCache`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from types import MappingProxyType

from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.quotas import Quota, Scope
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import (
    Change,
    Changes,
    KernelEnding,
    KernelFreed,
    KernelHeld,
    Node,
    NodeChanged,
    NodeGone,
    PendingSession,
    QuotaChanged,
    RunningKernel,
    SessionQueued,
    SessionUnqueued,
    Snapshot,
    UsageChanged,
)
from backendai_ray.core.usage import UsageLedger, account_of, charges_for

_BY_SUBMISSION = attrgetter("submitted_at", "id")
_BY_AGENT = attrgetter("agent_id")

NO_REPORT = "its report was lost; waiting for the next one"
"""Why nothing is placed on a node whose report could not be read."""


class Mirror:
    """A copy of what the Manager knows of one resource group, as far as scheduling needs it."""

    def __init__(self, resource_group: ResourceGroupName) -> None:
        self._group = resource_group
        self.incarnation = ""
        """The Manager's, whose numbers :attr:`upto` are; empty: nothing is known yet."""
        self.upto = 0
        self._pending: dict[SessionId, PendingSession] = {}
        self._running: dict[KernelId, RunningKernel] = {}
        self._held: dict[AgentId, dict[KernelId, Allocation]] = {}
        self._nodes: dict[AgentId, Node] = {}
        self._stale: set[AgentId] = set()
        self._quotas: dict[Scope, Quota] = {}
        self._usage = UsageLedger()
        self._queue: tuple[PendingSession, ...] | None = ()
        self._sorted_nodes: tuple[Node, ...] | None = ()

    def joins(self, changes: Changes) -> bool:
        """Return whether these changes continue, or replace, what is known here."""
        if changes.full:
            return True
        return changes.incarnation == self.incarnation and changes.upto - len(changes.changes) <= self.upto

    def news_in(self, changes: Changes) -> tuple[Change, ...]:
        """Return those changes that were not taken in before; an answer that came late or twice has none."""
        if changes.full:
            return changes.changes
        new = max(0, changes.upto - self.upto)
        return changes.changes[len(changes.changes) - new :] if new else ()

    def take(self, changes: Changes, reports: Mapping[AgentId, NodeReport]) -> None:
        """Take changes in.

        Args:
            changes: Changes that :meth:`joins`.
            reports: The last report of every node that changed; one that is missing was lost.

        Raises:
            ValueError: the changes do not join up.
        """
        if not self.joins(changes):
            raise ValueError(f"changes up to {changes.upto} do not follow on {self.upto} of {self.incarnation!r}")
        news = self.news_in(changes)
        if changes.full:
            self._forget()
        self.incarnation = changes.incarnation
        self.upto = max(self.upto, changes.upto)
        for change in news:
            self._take_one(change, reports)

    def snapshot(self, now: float) -> Snapshot:
        """Return the world as it stands; later changes do not show in it."""
        if self._queue is None:
            self._queue = tuple(sorted(self._pending.values(), key=_BY_SUBMISSION))
        if self._sorted_nodes is None or self._stale:
            for agent_id in self._stale & self._nodes.keys():
                held = MappingProxyType(dict(self._held.get(agent_id, {})))
                self._nodes[agent_id] = replace(self._nodes[agent_id], held=held)
            self._stale.clear()
            self._sorted_nodes = tuple(sorted(self._nodes.values(), key=_BY_AGENT))
        return Snapshot(
            now=now,
            resource_group=self._group,
            pending=self._queue,
            running=tuple(self._running.values()),
            nodes=self._sorted_nodes,
            quotas=tuple(self._quotas.values()),
            usage=self._usage.view(),
        )

    def next_start(self, now: float) -> float | None:
        """Return when the next session becomes eligible by the clock alone."""
        return min((s.starts_at for s in self._pending.values() if s.starts_at and s.starts_at > now), default=None)

    def _forget(self) -> None:
        self.upto = 0
        self._pending.clear()
        self._running.clear()
        self._held.clear()
        self._nodes.clear()
        self._stale.clear()
        self._quotas.clear()
        self._usage = UsageLedger()
        self._queue = self._sorted_nodes = None

    def _take_one(self, change: Change, reports: Mapping[AgentId, NodeReport]) -> None:
        match change:
            case SessionQueued(session):
                self._pending[session.id] = session
                self._queue = None
            case SessionUnqueued(session_id):
                if self._pending.pop(session_id, None) is not None:
                    self._queue = None
            case KernelHeld(kernel):
                self._free(kernel.kernel_id)
                self._running[kernel.kernel_id] = kernel
                self._held.setdefault(kernel.agent_id, {})[kernel.kernel_id] = kernel.allocation
                self._stale.add(kernel.agent_id)
            case KernelEnding(kernel_id, beneficiary, next_place):
                if (known := self._running.get(kernel_id)) is not None:
                    known = replace(known, ending=True, ending_for=beneficiary)
                    if next_place and known.restarts_as is not None:
                        known = replace(known, restarts_as=replace(known.restarts_as, nominated=next_place))
                    self._running[kernel_id] = known
            case KernelFreed(kernel_id, at):
                self._charge(kernel_id, at)
                self._free(kernel_id)
            case NodeChanged(agent_id):
                self._nodes[agent_id] = self._changed_node(change, reports.get(agent_id))
                self._stale.add(agent_id)
            case NodeGone(agent_id):
                self._nodes.pop(agent_id, None)
                self._sorted_nodes = None
            case UsageChanged(account, usage):
                self._usage.put(account, usage)
            case QuotaChanged(quota):
                self._quotas.pop(quota.scope, None)
                if quota.limits:
                    self._quotas[quota.scope] = quota

    def _charge(self, kernel_id: KernelId, until: float) -> None:
        kernel = self._running.get(kernel_id)
        if kernel is not None:
            self._usage.add(charges_for(account_of(kernel), kernel.allocation.slots(), kernel.placed_at, until))

    def _free(self, kernel_id: KernelId) -> None:
        kernel = self._running.pop(kernel_id, None)
        if kernel is not None:
            held = self._held[kernel.agent_id]
            held.pop(kernel_id, None)
            if not held:
                del self._held[kernel.agent_id]
            self._stale.add(kernel.agent_id)

    def _changed_node(self, change: NodeChanged, report: NodeReport | None) -> Node:
        known = self._nodes.get(change.agent_id)
        if report is None:
            known = known or Node(agent_id=change.agent_id, architecture="", devices=())
            return replace(known, unschedulable=change.unschedulable or NO_REPORT, failures=change.failures)
        devices = report.devices.devices()
        return Node(
            agent_id=change.agent_id,
            architecture=report.architecture,
            devices=known.devices if known is not None and known.devices == devices else devices,
            images=frozenset(report.images),
            labels=MappingProxyType(dict(report.labels)),
            unschedulable=change.unschedulable or report.health,
            failures=change.failures,
        )

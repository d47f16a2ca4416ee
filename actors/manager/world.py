"""All that the Manager knows, in memory, and the one place where a committed record takes effect in it.

Everything here is derived: from the store's live sessions and from what agents say. :meth:`World.replace` is called
with a record after its commit and brings the book, the ledger, the queue as policy actors see it, the timetable and
the dependencies into line at once, so that they never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable

from backendai_ray.core.ids import AgentId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import Deadlines
from backendai_ray.core.quotas import Limits, Scope
from backendai_ray.core.run_times import RunTimes
from backendai_ray.core.scheduling import (
    Change,
    Changes,
    KernelEnding,
    KernelFreed,
    KernelHeld,
    NodeChanged,
    NodeGone,
    QuotaChanged,
    RunningKernel,
    SessionQueued,
    SessionUnqueued,
    UsageChanged,
)
from backendai_ray.core.sessions import Kernel, Session, SessionSpec, Status
from backendai_ray.core.usage import UsageLedger
from backendai_ray.store import GroupRecord

from .accounting import charges_of, freed_at, freed_kernels
from .allowances import Allowances
from .book import Book
from .changelog import ChangeLog
from .dependencies import Waiting
from .failed_starts import nodes_that_failed
from .ledger import Ledger
from .nodes import Node, Nodes
from .timetable import Timetable
from .views import holds_devices, nominated_place, pending_session, running_kernel


class World:
    """The Manager's memory."""

    def __init__(self, incarnation: str, deadlines: Deadlines) -> None:
        self.incarnation = incarnation
        self.deadlines = deadlines
        self.book = Book()
        self.ledger = Ledger()
        self.allowances = Allowances()
        self.nodes = Nodes()
        self.waiting = Waiting()
        self.timetable = Timetable()
        self.run_times = RunTimes()
        self.groups: dict[ResourceGroupName, GroupRecord] = {}
        self.notes: dict[SessionId, str] = {}
        """Why a pending session waits, in the words of the last pass; of one that starts, how far its agent is."""
        self._usage: dict[ResourceGroupName, UsageLedger] = {}
        self._logs: dict[ResourceGroupName, ChangeLog] = {}
        self._avoid: dict[SessionId, dict[AgentId, None]] = {}

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def replace(self, before: Session | None, after: Session) -> list[ResourceGroupName]:
        """Let a committed record take effect.

        Returns:
            The resource groups that have a reason for another scheduling pass.
        """
        self.book.put(after)
        self._plan_ahead(before, after)
        self._blame_nodes(before, after)
        freed = self._move_devices(before, after)
        if after.status is Status.TERMINATING and before is not None and before.status is not Status.TERMINATING:
            self._publish_ending(after)
        if before is not None and before.status is Status.PENDING and after.status is not Status.PENDING:
            self.waiting.forget(after.id)
            self.allowances.leave_queue(after.spec)
            self._note(after, SessionUnqueued(after.id))
        if before is not None and before.status is not after.status:
            self.notes.pop(after.id, None)
        queued = after.status is Status.PENDING
        if queued:
            self.allowances.enter_queue(after.spec)
            self._remember_failure(before, after)
            self._publish_queued(after)
        groups = [after.spec.resource_group] if freed or (queued and self._is_news(before, after)) else []
        groups += self._tell_others(after, gave_back=freed) if self._holds_otherwise(before, after) else []
        if after.is_terminal:
            groups += self._end(after)
        return groups

    def _end(self, session: Session) -> list[ResourceGroupName]:
        self._avoid.pop(session.id, None)
        self.run_times.learn(session)
        groups = []
        for dependent in self.waiting.ended(session):
            waiting = self.book.live.get(dependent)
            if waiting is not None and waiting.status is Status.PENDING:
                self._publish_queued(waiting)
                self._look_when_overdue(waiting)
                groups.append(waiting.spec.resource_group)
        return groups

    def overdue_at(self, session: Session) -> float | None:
        """Return when the session's present state has lasted too long; who waits for others is not overdue."""
        if session.status is Status.PENDING and self.waiting.unmet(session.id):
            return None
        return self.deadlines.of(session, self.waiting.met_at(session.id))

    def _look_when_overdue(self, session: Session) -> None:
        at = self.overdue_at(session)
        if at is not None:
            self.timetable.add(at, session.id)

    @staticmethod
    def _is_news(before: Session | None, after: Session) -> bool:
        return before is None or before.status is not after.status

    def _plan_ahead(self, before: Session | None, after: Session) -> None:
        overdue_at = self.deadlines.of(after)
        if overdue_at is not None and (before is None or overdue_at != self.deadlines.of(before)):
            self.timetable.add(overdue_at, after.id)
        if after.status is Status.PENDING and after.spec.starts_at is not None and before is None:
            self.timetable.add(after.spec.starts_at, after.id)

    @staticmethod
    def _holds_otherwise(before: Session | None, after: Session) -> bool:
        held = sum(map(holds_devices, before.kernels)) if before is not None else 0
        return held != sum(map(holds_devices, after.kernels))

    def _tell_others(self, session: Session, *, gave_back: bool) -> list[ResourceGroupName]:
        """Tell the other resource groups what the scopes of a session hold here now; returns who may place more."""
        scopes = self.allowances.limited(session.spec)
        others = [group for group in self.groups if group != session.spec.resource_group] if scopes else []
        for group in others:
            for scope in scopes:
                self.log(group).add(QuotaChanged(self.allowances.quota(scope, group)))
        return others if gave_back else []

    def set_limits(self, scope: Scope, limits: Limits) -> list[ResourceGroupName]:
        """Let committed limits take effect; returns the resource groups that have a reason for another pass."""
        self.allowances.limits.pop(scope, None)
        if limits:
            self.allowances.limits[scope] = limits
        for group in self.groups:
            self.log(group).add(QuotaChanged(self.allowances.quota(scope, group)))
        return list(self.groups)

    def _move_devices(self, before: Session | None, after: Session) -> bool:
        """Bring the ledger into line with the record; returns whether something became free."""
        old = {} if before is None else {k.id: k for k in before.kernels if holds_devices(k)}
        new = {k.id: k for k in after.kernels if holds_devices(k)}
        self.allowances.free(old.keys() - new.keys())
        self.allowances.hold(after, new)
        self.usage_of(after.spec.resource_group).add(charges_of(before, after))
        for _, freed in freed_kernels(before, after):
            self.ledger.release(freed.id)
            self._note(after, KernelFreed(freed.id, freed_at(after, freed)))
        for kernel_id, kernel in new.items():
            if kernel_id in old or kernel.agent_id is None:
                continue
            self.ledger.adopt(kernel_id, kernel.agent_id, kernel.allocation)
            self._note(after, KernelHeld(self._running(after, kernel)))
        return bool(old.keys() - new.keys())

    def _publish_ending(self, session: Session) -> None:
        beneficiary = session.eviction.beneficiary if session.eviction is not None else None
        next_place = nominated_place(session)
        for kernel in session.kernels:
            if holds_devices(kernel):
                self._note(session, KernelEnding(kernel.id, beneficiary, next_place))

    def drop_tentative_holds(self, session: Session) -> None:
        """Free what was held for a placement that turned out not to be committed."""
        for kernel in session.kernels:
            if not holds_devices(kernel):
                self.ledger.release(kernel.id)
                self.allowances.free([kernel.id])

    def _blame_nodes(self, before: Session | None, after: Session) -> None:
        for agent_id in nodes_that_failed(before, after):
            node = self.nodes.get(agent_id)
            if node is not None:
                node.start_failed(after.status_at)
                self.publish_node(node)

    def _remember_failure(self, before: Session | None, after: Session) -> None:
        is_failure = before is not None and before.preemptions == after.preemptions
        if before is not None and before.attempt != after.attempt and is_failure:
            tried = (k.agent_id for k in before.kernels if k.agent_id is not None)
            self._avoid[after.id] = {**self._avoid.get(after.id, {}), **dict.fromkeys(tried)}

    def _publish_queued(self, session: Session) -> None:
        self._note(session, self._queued(session))

    def _queued(self, session: Session) -> SessionQueued:
        waiting_for = self.waiting.unmet(session.id)
        avoid = tuple(self._avoid.get(session.id, ()))
        expected_s = self.expected_s(session.spec)
        return SessionQueued(pending_session(session, waiting_for=waiting_for, avoid=avoid, expected_s=expected_s))

    def _running(self, session: Session, kernel: Kernel) -> RunningKernel:
        return running_kernel(session, kernel, expected_s=self.expected_s(session.spec))

    def expected_s(self, spec: SessionSpec) -> float | None:
        """Return how long a session will probably run."""
        return self.run_times.expected_s(spec.access_key, spec.type)

    def _note(self, session: Session, change: Change) -> None:
        self.log(session.spec.resource_group).add(change)

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish_node(self, node: Node) -> bool:
        """Tell the scheduler of a node what changed; returns whether it may place more than before."""
        log = self.log(node.group)
        if node.report is None:
            return False
        if node.lost_at is not None or node.has_left:
            if node.published is not None:
                log.add(NodeGone(node.agent_id))
                node.published = None
            return False
        why_not = node.unschedulable()
        now = (why_not, (node.incarnation, node.report.version, node.recent_failures))
        if now == node.published:
            return False
        node.published = now
        log.add(NodeChanged(node.agent_id, why_not, node.handle, node.recent_failures))
        return not why_not

    def leave_group(self, node: Node, group: ResourceGroupName) -> None:
        """The node belonged to this group until now."""
        if node.published is not None:
            self.log(group).add(NodeGone(node.agent_id))
            node.published = None

    def usage_of(self, group: ResourceGroupName) -> UsageLedger:
        """Return what sessions that have ended used in a group."""
        return self._usage.setdefault(group, UsageLedger())

    # ── the scheduler's view ──────────────────────────────────────────────────────────────────────────────────────

    def log(self, group: ResourceGroupName) -> ChangeLog:
        """Return the changes of a group."""
        log = self._logs.get(group)
        if log is None:
            log = self._logs[group] = ChangeLog(group, self.incarnation)
        return log

    def changes(self, group: ResourceGroupName, incarnation: str, since: int) -> Changes:
        """Return what came after ``since``, or the whole world when the numbers do not join up."""
        log = self.log(group)
        return log.since(incarnation, since) or log.world(tuple(self._everything(group)))

    def _everything(self, group: ResourceGroupName) -> Iterable[Change]:
        for node in self.nodes:
            if node.group == group and node.published is not None:
                yield NodeChanged(node.agent_id, node.published[0], node.handle, node.recent_failures)
        for scope in self.allowances.limits:
            yield QuotaChanged(self.allowances.quota(scope, group))
        for account, usage in self.usage_of(group).view().items():
            yield UsageChanged(account, usage)
        sessions = [s for s in self.book.live.values() if s.spec.resource_group == group]
        sessions.sort(key=lambda session: (session.created_at, session.id))
        for session in sessions:
            if session.status is Status.PENDING:
                yield self._queued(session)
            for kernel in session.kernels:
                if holds_devices(kernel):
                    yield KernelHeld(self._running(session, kernel))

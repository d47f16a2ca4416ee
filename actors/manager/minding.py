"""Deadlines, silent nodes, and the slow sweep that finds what no event told of.

At a deadline the agents are asked first; only when that changes nothing is the deadline itself an event. While a
node is silent its sessions' deadlines wait: either it comes back and tells, or it is lost, and then so are they.
"""

from __future__ import annotations

import asyncio

import structlog

from backendai_ray.config import ManagerSettings
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.core.lifecycle import AgentLost, DeadlineExpired
from backendai_ray.core.sessions import STARTING, Session, Status
from backendai_ray.core.usage import DAY_S, LOOKBACK_S
from backendai_ray.store import Batch

from .journal import Journal, all_of
from .nodes import Node
from .orders import Orders
from .ports import Clock, ManagerStore
from .quota_desk import QuotaDesk
from .reconcile import Reconciler
from .views import holds_devices
from .waker import Waker
from .world import World

log = structlog.get_logger()

RECONCILE_EVERY_S = 60.0
"""A node that gives no cause for doubt is still asked this often."""

FORGET_EVERY_S = 600.0
"""How often what has expired is deleted."""

LONGEST_NAP_S = 1.0


class Minder:
    """Looks at what is overdue."""

    def __init__(
        self,
        settings: ManagerSettings,
        world: World,
        journal: Journal,
        store: ManagerStore,
        orders: Orders,
        reconciler: Reconciler,
        quota_desk: QuotaDesk,
        waker: Waker,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._world = world
        self._journal = journal
        self._store = store
        self._orders = orders
        self._reconciler = reconciler
        self._quota_desk = quota_desk
        self._waker = waker
        self._clock = clock
        self._next_sweep = 0.0
        self._next_forget = 0.0

    async def run(self) -> None:
        """Mind for ever; a failed round is logged and the next one tries again."""
        while True:
            try:
                await self.tick()
            except BackendError as exc:
                log.warning("minder.round_failed", error=exc.message)
            except Exception:
                log.exception("minder.round_failed")
            await self._sleep(self._nap())

    async def _sleep(self, nap_s: float) -> None:
        """Sleep, and notice when it was much longer: then this process was stopped, and nobody else was silent."""
        began = self._clock()
        await asyncio.sleep(nap_s)
        self.forgive(self._clock() - began - nap_s)

    def forgive(self, lost_s: float) -> None:
        """Do not count time in which this process could not hear anybody as silence of the nodes."""
        if lost_s > self._settings.heartbeat_timeout_s / 2:
            log.warning("minder.was_stopped", seconds=round(lost_s, 1))
            for node in self._world.nodes:
                node.last_seen += lost_s

    def _nap(self) -> float:
        next_at = self._world.timetable.next_at()
        until = LONGEST_NAP_S if next_at is None else next_at - self._clock()
        return min(max(until, 0.01), LONGEST_NAP_S, self._settings.sweep_interval_s)

    async def tick(self) -> None:
        """Do one round: silent nodes, due deadlines, and the sweep when it is time."""
        now = self._clock()
        await self.check_nodes(now)
        await self.check_due(now)
        if now >= self._next_sweep:
            self._next_sweep = now + self._settings.sweep_interval_s
            await self.sweep(now)

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def check_nodes(self, now: float) -> None:
        """Notice silent nodes; give up on those that were silent for too long."""
        for node in self._world.nodes:
            silent_s = now - node.last_seen
            if silent_s > self._settings.heartbeat_timeout_s and not node.is_away:
                log.warning("node.away", agent_id=node.agent_id, silent_s=round(silent_s, 1))
                node.is_away = True
                self._reconciler.publish(node)
            if silent_s > self._settings.agent_lost_after_s:
                await self._lose(node, now)

    async def _lose(self, node: Node, now: float) -> None:
        if node.lost_at is None:
            log.error("node.lost", agent_id=node.agent_id)
            node.lost_at = now
            self._reconciler.publish(node)
        lost = AgentLost(cause=f"lost-{node.agent_id}", now=now, agent_id=node.agent_id)
        sessions = self._world.book.on_agent(node.agent_id)
        await all_of(self._journal.advance(session.id, lambda _: [lost]) for session in sessions)

    async def save_nodes(self) -> None:
        """Commit what has changed about nodes and must survive."""
        changed = [node for node in self._world.nodes if node.capacity and node.saved != node.record()]
        if not changed:
            return
        records = tuple(node.record() for node in changed)
        await self._store.commit(Batch(agents=records))
        for node, record in zip(changed, records, strict=True):
            node.saved = record

    # ── deadlines ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def check_due(self, now: float) -> None:
        """Look at every session whose time has come."""
        due = [s for i in self._world.timetable.due(now) if (s := self._world.book.live.get(i)) is not None]
        overdue = [session for session in due if self._is_overdue(session, now)]
        for session in due:
            at = self._world.overdue_at(session)
            if at is not None and at > now:  # it waited for others meanwhile: its time began later
                self._world.timetable.add(at, session.id)
        start_now = {s.spec.resource_group for s in due if s.status is Status.PENDING and s.spec.starts_at is not None}
        self._waker.wake(start_now, "a start time has come")
        if not overdue:
            return
        asked = [agent for agent in {a for session in overdue for a in agents_of(session)} if self._is_heard(agent)]
        answers = dict(zip(asked, await all_of(map(self._reconciler.reconcile, asked)), strict=True))
        await all_of(self._expire(session, answers, now) for session in overdue)

    def _is_overdue(self, session: Session, now: float) -> bool:
        at = self._world.overdue_at(session)
        return at is not None and at <= now

    async def _expire(self, session: Session, answers: dict[AgentId, bool], now: float) -> None:
        current = self._world.book.live.get(session.id)
        if current is None or (current.status, current.status_at) != (session.status, session.status_at):
            return
        silent = [agent for agent in agents_of(current) if not answers.get(agent, False)]
        nodes = [self._world.nodes.get(agent) for agent in silent]
        if any(node is not None and self._will_be_settled(node) for node in nodes):
            self._look_again(session.id, now)
            return
        log.warning("session.overdue", session_id=session.id, status=session.status.value)
        expired = DeadlineExpired(
            cause="deadline",
            now=now,
            status=current.status,
            status_at=current.status_at,
            message=self._waited_too_long(current) if current.status is Status.PENDING else "",
        )
        try:
            await self._journal.advance(session.id, lambda _: [expired])
        except BackendError as exc:
            log.warning("session.not_expired", session_id=session.id, error=exc.message)
            self._look_again(session.id, now)

    def _waited_too_long(self, session: Session) -> str:
        limit = self._world.deadlines.pending_limit(session.spec)
        last = self._world.notes.get(session.id, "")
        return f"waited longer than {limit or 0:g} s for a place" + (f"; the last reason: {last}" if last else "")

    @staticmethod
    def _will_be_settled(node: Node) -> bool:
        """A silent node comes back or is lost, each of which settles its sessions; one that only does not answer
        while its heartbeats go on may stay so for ever."""
        return node.is_away or node.has_left

    def _is_heard(self, agent_id: AgentId) -> bool:
        node = self._world.nodes.get(agent_id)
        return node is not None and not self._will_be_settled(node)

    def _look_again(self, session_id: SessionId, now: float) -> None:
        self._world.timetable.add(now + self._settings.sweep_interval_s, session_id)

    # ── the sweep ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def sweep(self, now: float) -> None:
        """Repair what messages were lost over; each part fails alone."""
        for part in (
            self._journal.settle_unsure,
            self._quota_desk.settle_unsure,
            self._journal.cancel_doomed,
            self.save_nodes,
            lambda: self._ask_doubtful(now),
            lambda: self._forget(now),
        ):
            try:
                await part()
            except BackendError as exc:
                log.warning("sweep.part_failed", error=exc.message)
        self._orders.prune()

    async def _ask_doubtful(self, now: float) -> None:
        """Ask nodes for the truth where an order or its answer may have been lost, and all others now and then."""
        doubtful = {
            agent
            for session in self._world.book.live.values()
            if self._is_doubtful(session, now)
            for agent in agents_of(session)
        }
        for node in self._world.nodes:
            if node.is_away or node.has_left:
                doubtful.discard(node.agent_id)
            elif not node.is_reconciled or now - node.reconciled_at > RECONCILE_EVERY_S:
                doubtful.add(node.agent_id)
        await all_of(map(self._reconciler.reconcile, sorted(doubtful)))

    def _is_doubtful(self, session: Session, now: float) -> bool:
        moving = STARTING | {Status.RESTARTING, Status.TERMINATING}
        return session.status in moving and now - session.status_at > self._settings.sweep_interval_s

    async def _forget(self, now: float) -> None:
        if now >= self._next_forget:
            self._next_forget = now + FORGET_EVERY_S
            await self._store.sweep_idempotency(now)
            await self._store.sweep_usage(now - LOOKBACK_S - DAY_S)
            await self._store.sweep_scheduling(now - self._settings.scheduling_history_keep_s)


def agents_of(session: Session) -> list[AgentId]:
    """Return the nodes on which the session has kernels."""
    return sorted({k.agent_id for k in session.kernels if holds_devices(k) and k.agent_id is not None})

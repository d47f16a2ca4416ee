"""Asking agents for the truth, and taking in what they say.

An agent is the authority on what runs on its node; the Manager on what should. Wherever they differ:

======================  =================================  ==========================================================
should be there         is there                           done
======================  =================================  ==========================================================
on its way              no                                 the order to make it is given again
on its way              running                            it has started
running                 no                                 it has ended: container lost
running                 running, but the agent has no      the order to make it is given again, which finds it
                        record of it
being ended             yes                                the order to end it is given again
being ended             no                                 it has ended (unless an order to make it is under way)
any                     ended                              it has ended; then the agent may forget it
no                      yes                                it is destroyed; until then nothing new goes there
======================  =================================  ==========================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from actors.contracts import Inspection
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.lifecycle import Event, KernelEnded
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import STARTING, TERMINAL, Reason, Session, Status
from backendai_ray.store import KernelLog

from .facts import events_of, is_about, judge_missing
from .journal import Journal, all_of
from .nodes import Node
from .orders import Orders
from .ports import Clock, ConnectAgent
from .waker import Waker
from .world import World

log = structlog.get_logger()

INSPECT_TIMEOUT_S = 10.0


class Reconciler:
    """Keeps the sessions' records in line with what agents say."""

    def __init__(
        self, world: World, journal: Journal, orders: Orders, waker: Waker, connect: ConnectAgent, clock: Clock
    ) -> None:
        self._world = world
        self._journal = journal
        self._orders = orders
        self._waker = waker
        self._connect = connect
        self._clock = clock
        self._running: dict[AgentId, asyncio.Task[bool]] = {}

    # ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def take_facts(self, agent_id: AgentId, facts: Sequence[KernelFact], cause: str) -> None:
        """Commit what an agent says; then tell it which ends it need not remember any more.

        Raises:
            StoreUnavailable: some of it could not be committed; the agent says it again.
        """
        by_session: dict[SessionId, list[KernelFact]] = {}
        for fact in facts:
            session = self._world.book.of_kernel(fact.kernel_id)
            if session is not None and is_about(session, fact, agent_id):
                by_session.setdefault(session.id, []).append(fact)
            else:
                self._take_foreign(agent_id, session, fact)
        await all_of(self._take_of(session_id, agent_id, own, cause) for session_id, own in by_session.items())

    async def _take_of(self, session_id: SessionId, agent_id: AgentId, facts: Sequence[KernelFact], cause: str) -> None:
        now = self._clock()
        logs = [
            KernelLog(kernel_id=fact.kernel_id, session_id=session_id, log=fact.log_tail, at=now)
            for fact in facts
            if fact.status in TERMINAL and fact.log_tail
        ]

        def decide(session: Session) -> Sequence[Event]:
            current = [fact for fact in facts if is_about(session, fact, agent_id)]
            return events_of(session, current, cause=cause, now=now, has_restarted=self._orders.has_restarted)

        session = await self._journal.advance(session_id, decide, kernel_logs=logs)
        if session is not None and session.status in STARTING:
            self._note_progress(session, facts)
        for fact in facts:
            if fact.status in TERMINAL:
                self._orders.acknowledge(agent_id, fact.kernel_id)
                self._is_no_stray(self._world.nodes.meet(agent_id, now), fact.kernel_id)

    def _note_progress(self, session: Session, facts: Sequence[KernelFact]) -> None:
        """Remember how far a start is, for who looks; it is not worth a commit."""
        said = [fact.message for fact in facts if fact.status is session.status and fact.message]
        if said:
            self._world.notes[session.id] = said[-1]

    def _take_foreign(self, agent_id: AgentId, session: Session | None, fact: KernelFact) -> None:
        """Deal with a kernel that no live session has on this node (any more)."""
        node = self._world.nodes.meet(agent_id, self._clock())
        kernel = None if session is None else session.kernel(fact.kernel_id)
        if kernel is not None and kernel.agent_id == agent_id:
            return  # late word of an earlier attempt; this one is made in its place
        if fact.status in TERMINAL:
            self._orders.acknowledge(agent_id, fact.kernel_id)
            self._is_no_stray(node, fact.kernel_id)
            return
        self._take_stray(node, fact)

    def _is_no_stray(self, node: Node, kernel_id: KernelId) -> None:
        if kernel_id in node.strays:
            node.strays.discard(kernel_id)
            self.publish(node)

    def _take_stray(self, node: Node, fact: KernelFact) -> None:
        agent_id = node.agent_id
        if fact.kernel_id not in node.strays:
            log.warning("kernel.stray", agent_id=agent_id, kernel_id=fact.kernel_id, session_id=fact.session_id)
            node.strays.add(fact.kernel_id)
            self.publish(node)
        self._orders.destroy_stray(agent_id, fact.kernel_id, Reason.AGENT_LOST)

    def publish(self, node: Node) -> None:
        """Tell the scheduler what has changed about a node."""
        if self._world.publish_node(node):
            self._waker.wake([node.group], f"node {node.agent_id} can take kernels")

    # ── the truth ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def reconcile(self, agent_id: AgentId) -> bool:
        """Ask an agent for the truth and act on it; returns whether it answered.

        Several who ask at the same time share one answer.
        """
        running = self._running.get(agent_id)
        if running is None:
            running = self._running[agent_id] = asyncio.create_task(self._reconcile(agent_id))
            running.add_done_callback(lambda _: self._running.pop(agent_id, None))
        return await asyncio.shield(running)

    def reconcile_soon(self, agent_id: AgentId) -> None:
        """Ask an agent for the truth behind the caller's back."""
        if agent_id not in self._running:
            running = self._running[agent_id] = asyncio.create_task(self._reconcile(agent_id))
            running.add_done_callback(lambda _: self._running.pop(agent_id, None))

    async def settle(self) -> None:
        """Wait until nobody is being asked."""
        while running := list(self._running.values()):
            await asyncio.gather(*running)

    async def stop(self) -> None:
        """Give up on answers that have not come."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _reconcile(self, agent_id: AgentId) -> bool:
        node = self._world.nodes.meet(agent_id, self._clock())
        before = {
            kernel.id: (session.attempt, kernel.status)
            for session in self._world.book.on_agent(agent_id)
            for kernel in session.kernels
            if kernel.agent_id == agent_id
        }
        asked_at = self._clock()
        was_reconciled, was_ready = node.is_reconciled and node.lost_at is None, node.is_ready
        try:
            inspection = await asyncio.wait_for(self._connect(agent_id).inspect(), INSPECT_TIMEOUT_S)
        except (BackendError, TimeoutError) as exc:
            log.info("agent.not_inspected", agent_id=agent_id, error=repr(exc))
            return False
        node.seen(self._clock())
        cause = f"inspect-{inspection.incarnation[:8]}"
        try:
            await self.take_facts(agent_id, inspection.kernels, cause)
            self._take_survivors(node, inspection, asked_at)
            if was_ready and inspection.incarnation == node.incarnation:
                await self._take_missing(agent_id, before, inspection, cause, redrive=not was_reconciled)
                self._is_reconciled(node, inspection)
        except BackendError as exc:
            log.warning("agent.not_reconciled", agent_id=agent_id, error=exc.message)
        return True

    def _take_survivors(self, node: Node, inspection: Inspection, asked_at: float) -> None:
        """Have kernels ended that are alive although they were given up, with a node that was away.

        Their session may still live: a gang ends only when the rest of it has ended elsewhere. Nobody else would end
        them, and their devices count as free.
        """
        for fact in inspection.kernels:
            session = self._world.book.of_kernel(fact.kernel_id)
            kernel = None if session is None else session.kernel(fact.kernel_id)
            if kernel is None or fact.status in TERMINAL or kernel.terminated_at is None:
                continue
            if kernel.agent_id == node.agent_id and kernel.terminated_at < asked_at:  # else the answer is older
                self._take_stray(node, fact)

    async def _take_missing(
        self,
        agent_id: AgentId,
        before: dict[KernelId, tuple[int, Status]],
        inspection: Inspection,
        cause: str,
        *,
        redrive: bool,
    ) -> None:
        now = self._clock()
        jobs = []
        for session in self._world.book.on_agent(agent_id):
            missing = judge_missing(session, agent_id, before, inspection.kernels)
            self._orders.create(session, {*missing.create, *_unrecorded(session, agent_id, inspection.kernels)})
            if redrive or session.status in (Status.TERMINATING, Status.RESTARTING):
                self._orders.redrive(session)
            else:
                self._orders.redrive_lost_startup(session)
            gone = [k for k in missing.gone if not self._orders.is_sending(agent_id, k)]
            ends = [
                *(_end(session, k, Reason.CONTAINER_LOST, "its container is gone", cause, now) for k in missing.lost),
                *(_end(session, k, session.reason, "", cause, now) for k in gone),
            ]
            if ends:
                jobs.append(self._journal.advance(session.id, lambda _, ends=ends: ends))  # type: ignore[misc]
        await all_of(jobs)

    def _is_reconciled(self, node: Node, inspection: Inspection) -> None:
        node.reconciled = inspection.incarnation
        node.reconciled_at = self._clock()
        node.strays &= {fact.kernel_id for fact in inspection.kernels}
        node.is_away = False
        node.lost_at = None
        self.publish(node)


def _unrecorded(session: Session, agent_id: AgentId, there: Sequence[KernelFact]) -> set[KernelId]:
    """Return the kernels that run but whose record the agent has lost: the same order again makes it one, and no more.

    One that is being restarted is made first, as the life that it is to become.
    """
    unknown = {fact.kernel_id for fact in there if not fact.has_record and fact.attempt == session.attempt}
    kept = (*STARTING, Status.RUNNING, Status.RESTARTING)
    mine = (kernel for kernel in session.kernels if kernel.agent_id == agent_id and kernel.status in kept)
    return {kernel.id for kernel in mine if kernel.id in unknown}


def _end(session: Session, kernel_id: KernelId, reason: Reason, message: str, cause: str, now: float) -> KernelEnded:
    return KernelEnded(
        cause=cause, now=now, kernel_id=kernel_id, attempt=session.attempt, reason=reason, message=message
    )

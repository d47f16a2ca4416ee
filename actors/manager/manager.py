"""The Manager: the one writer of durable state, as a plain class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import structlog

from actors.contracts import (
    AgentView,
    Keypair,
    QuotaView,
    Rehearsed,
    Route,
    SessionPage,
    SokovanContract,
    SubmitRequest,
    Submitted,
)
from backendai_ray.config import Settings
from backendai_ray.core.errors import (
    KernelNotFound,
    NameInUse,
    NotFound,
    SessionEnded,
    SessionNotReady,
    Unavailable,
)
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId, parse_session_name
from backendai_ray.core.lifecycle import Renamed, RestartRequested, StatusChange, TerminateRequested
from backendai_ray.core.quotas import Limits, Scope
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.scheduling import Applied, Changes, Plan
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import TERMINAL, Reason, Session, Status
from backendai_ray.store import Store

from .bootstrap import as_keypair
from .invariants import broken
from .parts import Parts, load
from .ports import Clock, ConnectAgent, ManagerStore, NewId, OpenRelay, OpenStore, ResolveReport
from .relaying import open_relay as open_bus_relay

log = structlog.get_logger()

READY_WAIT_S = 10.0
"""How long a call waits for a Manager that is still starting."""

ROUTE_WAIT_S = 5.0
"""How long a rename or a restart waits for the node to take it."""


class Manager:
    """Owns the sessions.

    Guarantees. A call that returns is committed: its change survives any crash. A call that raises
    ``StoreUnavailable`` has changed nothing; one that raises anything else of ``Unavailable`` may have, and is
    repeated: every change is idempotent. What is in memory beside the store is found out again after a restart: the
    ledger and the queue from the sessions' records, what runs from the agents. The life of a session is
    :mod:`backendai_ray.core.lifecycle`; the parts of this package carry it out.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        connect_agent: ConnectAgent,
        sokovan: SokovanContract,
        resolve_report: ResolveReport,
        open_store: OpenStore | None = None,
        open_relay: OpenRelay | None = None,
        clock: Clock = time.time,
        new_id: NewId = lambda: str(uuid4()),
        minds_itself: bool = True,
    ) -> None:
        """Remember what it is made of; the work begins with :meth:`start`.

        Args:
            settings: The cluster's settings.
            connect_agent: Returns an agent by its id, whether it is there or not.
            sokovan: Woken when there is a reason for a scheduling pass.
            resolve_report: Turns what ``node_report`` carries into the report.
            open_store: Opens the durable state; by default what the settings name.
            open_relay: Opens the way to the event bus; by default what the settings name.
            clock: Returns Unix seconds.
            new_id: Returns a new UUID.
            minds_itself: Whether deadlines and sweeps run by themselves; tests call ``tick`` instead.
        """
        self._settings = settings
        self._connect_agent = connect_agent
        self._sokovan = sokovan
        self._resolve_report = resolve_report
        self._open_store = open_store or partial(Store.open, settings.store_url, pool_size=settings.store.pool_size)
        self._open_relay = open_relay or partial(open_bus_relay, settings=settings.bus)
        self._clock = clock
        self._new_id = new_id
        self._minds_itself = minds_itself
        self._store: ManagerStore | None = None
        self._parts: Parts | None = None
        self._is_ready = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._keypairs: dict[str, Keypair] = {}

    # ── start and stop ────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Load, go on where the last Manager stopped, and begin to answer; may be tried again when it fails.

        Raises:
            StoreUnavailable: the store cannot be opened or read.
        """
        if self._is_ready.is_set():
            return
        began = time.monotonic()
        if self._store is None:
            self._store = await self._open_store()
        relay = self._open_relay(self._store)
        try:
            self._parts = parts = await load(
                self._settings,
                store=self._store,
                relay=relay,
                connect_agent=self._connect_agent,
                sokovan=self._sokovan,
                clock=self._clock,
                new_id=self._new_id,
            )
        except BaseException:
            if relay is not None:
                await relay.close()
            raise
        self._is_ready.set()
        log.info("manager.ready", sessions=len(parts.world.book.live), seconds=round(time.monotonic() - began, 3))
        for node in parts.world.nodes:
            if node.lost_at is None:
                parts.reconciler.reconcile_soon(node.agent_id)
        parts.waker.wake(parts.world.groups, "the Manager has started")
        if relay is not None:
            self._background.append(asyncio.create_task(relay.run()))
        if self._minds_itself:
            self._background.append(asyncio.create_task(parts.minder.run()))
            self._background.append(asyncio.create_task(parts.chronicle.run()))

    async def stop(self) -> None:
        """Stop working; what was acknowledged is in the store."""
        self._is_ready.clear()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background.clear()
        if self._parts is not None:
            for part in (self._parts.reconciler, self._parts.orders, self._parts.waker):
                await part.stop()
            if self._parts.relay is not None:
                await self._parts.relay.close()
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def tick(self) -> None:
        """Look at silent nodes, deadlines and, when it is time, at everything."""
        await (await self._ready()).minder.tick()

    async def validate(self) -> list[str]:
        """Return a sentence for every invariant that does not hold; empty when all is well."""
        return broken((await self._ready()).world)

    async def _ready(self) -> Parts:
        if not self._is_ready.is_set():
            try:
                await asyncio.wait_for(self._is_ready.wait(), READY_WAIT_S)
            except TimeoutError:
                raise Unavailable("the Manager is still starting; try again") from None
        if self._parts is None:
            raise Unavailable("the Manager has not started")
        return self._parts

    # ── for the front door ────────────────────────────────────────────────────────────────────────────────────────

    async def bootstrap_credentials(self) -> Keypair:
        """Return the first administrator's keypair."""
        return (await self._ready()).first_keypair

    async def keypair(self, access_key: str) -> Keypair | None:
        """Return who signs with that key."""
        parts = await self._ready()
        if access_key not in self._keypairs:
            record = await parts.store.keypair(access_key)
            if record is None:
                return None
            self._keypairs[access_key] = as_keypair(record)
        return self._keypairs[access_key]

    async def submit(self, request: SubmitRequest) -> Submitted:
        """Take a session in; see :meth:`.submission.Submission.submit` for what it raises."""
        return await (await self._ready()).submission.submit(request)

    async def rehearse(self, request: SubmitRequest) -> Rehearsed:
        """Check a draft as :meth:`submit` does, and take nothing in."""
        return await (await self._ready()).submission.rehearse(request)

    async def session(self, access_key: AccessKey, name_or_id: str) -> Session:
        """Return the owner's session of that name, id, or beginning of an id.

        Raises:
            SessionNotFound: there is none.
        """
        return await (await self._ready()).lookup.find(access_key, name_or_id)

    async def sessions(
        self, access_key: AccessKey | None, *, statuses: Sequence[str], limit: int, offset: int
    ) -> SessionPage:
        """Return some sessions, newest first."""
        return await (await self._ready()).lookup.page(access_key, statuses, limit, offset)

    async def route(self, access_key: AccessKey, name_or_id: str) -> Route:
        """Return the way to a running session's main kernel.

        Raises:
            SessionNotFound: there is none.
            SessionNotReady: it does not run yet, or just restarts.
            SessionEnded: it has ended, or is about to.
        """
        session = await self.session(access_key, name_or_id)
        facts = {"status": session.status.value, "reason": session.reason.value, "session_id": session.id}
        because = f" ({session.message})" if session.message else ""
        if session.is_terminal or session.status is Status.TERMINATING:
            raise SessionEnded(f"session {session.spec.name} is {session.status}{because}", **facts)
        route = Route.to(session)
        if route is None:
            raise SessionNotReady(f"session {session.spec.name} is {session.status}{because}", **facts)
        return route

    async def wait(self, session_id: SessionId, statuses: Sequence[str], timeout_s: float) -> Session:
        """Return the session as soon as it is in one of the statuses or terminal; at the timeout, as it is.

        Raises:
            SessionNotFound: there is none.
        """
        parts = await self._ready()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        session: Session | None = await parts.lookup.get(session_id)
        while session is not None and not session.is_terminal and session.status.value not in statuses:
            session = parts.world.book.live.get(session_id)
            if session is None or session.status.value in statuses:
                break
            session = await parts.world.book.next_version(session_id, deadline - loop.time())
        if session is None:
            return await parts.lookup.get(session_id)
        return parts.lookup.present(session) if session.status is Status.PENDING else session

    async def terminate(
        self, access_key: AccessKey, name_or_id: str, *, forced: bool, recursive: bool, request_id: str
    ) -> Session:
        """End a session, with ``recursive`` also those that wait for it; one that has ended is returned as it is.

        ``forced`` kills without grace. A session whose node does not answer stays TERMINATING, forced or not, until
        the node says that nothing is left or is given up: its devices must not go to another one before.
        """
        parts = await self._ready()
        session = await parts.lookup.find(access_key, name_or_id)
        event = TerminateRequested(
            cause=request_id,
            now=self._clock(),
            reason=Reason.FORCED if forced else Reason.USER_REQUESTED,
            message="its owner asked for it",
            forced=forced,
        )
        for dependent in parts.world.waiting.all_dependents(session.id) if recursive else ():
            await parts.journal.advance(dependent, lambda _: [event])
        return await parts.journal.advance(session.id, lambda _: [event]) or await parts.lookup.get(session.id)

    async def restart(self, access_key: AccessKey, name_or_id: str, *, request_id: str) -> Session:
        """Give a running session fresh containers at the same place; returns once its nodes have taken the order.

        Raises:
            SessionNotReady, SessionEnded: it does not run.
            AgentUnavailable: a node has not taken the order yet; it is told as soon as it answers.
        """
        parts = await self._ready()
        session_id = await self._running_or_restarting(access_key, name_or_id)
        event = RestartRequested(cause=request_id, now=self._clock())
        if request_id and any(c.cause == request_id for c in await parts.store.history(session_id)):
            return await parts.lookup.get(session_id)
        session = await parts.journal.advance(session_id, lambda _: [event])
        if session is None:
            raise SessionEnded("the session has ended meanwhile", session_id=session_id)
        for kernel in session.kernels:
            if kernel.agent_id is not None:
                await parts.orders.until_taken(kernel.agent_id, ("restart", kernel.id), ROUTE_WAIT_S)
        return session

    async def _running_or_restarting(self, access_key: AccessKey, name_or_id: str) -> SessionId:
        """Return the id of a session that runs or restarts.

        Raises:
            SessionNotReady, SessionEnded: it does neither.
        """
        session = await self.session(access_key, name_or_id)
        if session.status is Status.RESTARTING:
            return session.id
        return (await self.route(access_key, name_or_id)).session_id

    async def rename(self, access_key: AccessKey, name_or_id: str, name: str, *, request_id: str) -> Session:
        """Give a live session another name; returns once its node knows it.

        Raises:
            InvalidParameter: the name cannot name a session.
            NameInUse: another live session of the owner has it.
            SessionEnded: only live sessions can be renamed.
            AgentUnavailable: the node has not taken it yet; it is told as soon as it answers.
        """
        parts = await self._ready()
        parse_session_name(name)
        session = await parts.lookup.find(access_key, name_or_id)
        if session.is_terminal:
            raise SessionEnded(f"session {session.spec.name} has ended and keeps its name", session_id=session.id)
        holder = parts.world.book.named(access_key, name)
        if holder not in (None, session.id):
            raise NameInUse(f"you have a live session named {name!r} already", session_id=holder)
        event = Renamed(cause=request_id, now=self._clock(), name=name)
        renamed = await parts.journal.advance(session.id, lambda s: [] if s.spec.name == name else [event])
        if renamed is None:
            raise SessionEnded("the session has ended meanwhile", session_id=session.id)
        if renamed.main.agent_id is not None:
            await parts.orders.until_taken(renamed.main.agent_id, ("route", renamed.main.id), ROUTE_WAIT_S)
        return renamed

    async def history(self, session_id: SessionId) -> Sequence[StatusChange]:
        """Return a session's status history, oldest first."""
        return await (await self._ready()).store.history(session_id)

    async def scheduling_history(self, session_id: SessionId) -> Sequence[SchedulingEntry]:
        """Return what the scheduler told a session, oldest first; the last :data:`KEPT` entries are there."""
        return await (await self._ready()).chronicle.entries(session_id)

    async def logs(self, access_key: AccessKey, name_or_id: str, kernel_id: KernelId | None) -> bytes:
        """Return what a kernel (by default the main one) printed: from its node while it lives, then as kept.

        Raises:
            SessionNotFound, KernelNotFound: there is no such session, or no such kernel in it.
            AgentUnavailable: the node of a live kernel does not answer.
        """
        parts = await self._ready()
        session = await parts.lookup.find(access_key, name_or_id)
        kernel = session.kernel(kernel_id or session.main.id)
        if kernel is None:
            raise KernelNotFound(f"session {session.spec.name} has no kernel {kernel_id}", kernel_id=kernel_id)
        if kernel.status not in TERMINAL and kernel.agent_id is not None:
            try:
                return await self._connect_agent(kernel.agent_id).logs(kernel.id)
            except NotFound:
                pass  # not made yet, or ended just now
        return await parts.store.kernel_log(kernel.id) or b""

    async def dependency_graph(self, access_key: AccessKey, name_or_id: str) -> Mapping[str, Any]:
        """Return the session and, nested, what it depends on."""
        parts = await self._ready()
        return await parts.lookup.dependency_graph(await parts.lookup.find(access_key, name_or_id))

    async def agents(self) -> Sequence[AgentView]:
        """Return all nodes that were ever there."""
        world = (await self._ready()).world
        return [node.view(world.ledger.occupied(node.agent_id)) for node in world.nodes]

    async def quotas(self, access_key: AccessKey | None) -> Sequence[QuotaView]:
        """Return the quotas that bind a keypair; ``None``: all there are."""
        desk = (await self._ready()).quota_desk
        if access_key is None:
            return desk.all()
        keypair = await self.keypair(access_key)
        return [] if keypair is None else desk.of(keypair)

    async def set_quota(self, scope: Scope, limits: Limits) -> QuotaView:
        """Replace a scope's limits; see :meth:`.quota_desk.QuotaDesk.set` for what it raises."""
        return await (await self._ready()).quota_desk.set(scope, limits)

    # ── for agents and the node watcher ───────────────────────────────────────────────────────────────────────────

    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None:
        """Take a report; the node is used once its agent is ready and was compared with the records."""
        parts = await self._ready()
        resolved = await self._resolve_report(report)
        await parts.registrar.take_report((agent_id, incarnation, version), resolved, report, ready=ready)

    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None:
        """Note that an agent is there.

        Raises:
            AgentNotFound: no report of this incarnation is known (the Manager was restarted): send it again.
        """
        (await self._ready()).registrar.heartbeat(agent_id, incarnation)

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None:
        """Take news of kernels; returns after the commit.

        Raises:
            StoreUnavailable: not all of it could be committed; tell it again.
        """
        parts = await self._ready()
        parts.world.nodes.meet(agent_id, self._clock()).seen(self._clock())
        await parts.reconciler.take_facts(agent_id, facts, f"agent-{agent_id}")

    async def agent_joined(self, agent_id: AgentId) -> None:
        """An agent was started on a node, or found there: ask it what it has."""
        (await self._ready()).registrar.joined(agent_id)

    async def agent_gone(self, agent_id: AgentId) -> None:
        """A node has left the Ray cluster: nothing new goes there; what ran there is lost unless it comes back."""
        (await self._ready()).registrar.gone(agent_id)

    # ── for Sokovan ───────────────────────────────────────────────────────────────────────────────────────────────

    async def groups(self) -> Mapping[ResourceGroupName, Mapping[str, Any]]:
        """Return the resource groups with ``policy``, ``selection`` and ``options`` of each."""
        groups = (await self._ready()).world.groups
        return {
            group.name: {"policy": group.policy, "selection": group.selection, "options": dict(group.options)}
            for group in groups.values()
        }

    async def changes(self, group: ResourceGroupName, incarnation: str, since: int) -> Changes:
        """Return what happened in a group after ``since``, or its whole world."""
        return (await self._ready()).world.changes(group, incarnation, since)

    async def apply(self, group: ResourceGroupName, plan: Plan, *, pass_id: str) -> Applied:
        """Commit what still fits of a plan; see :meth:`.placing.Placing.apply`."""
        return await (await self._ready()).placing.apply(group, plan, pass_id)

"""Orders to agents: given in order, repeated until they are taken, forgotten when nobody wants them any more.

Orders live in memory only. What is lost with the Manager follows from the sessions' records again (see
:meth:`Orders.redrive`), because every order is idempotent at the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from backendai_ray.core.errors import AgentUnavailable, BackendError, InternalError, Unavailable
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.lifecycle import (
    CreateKernels,
    Dequeue,
    DestroyKernels,
    Effect,
    Enqueue,
    ReleaseDevices,
    RestartKernels,
    RunStartup,
    UpdateRoute,
)
from backendai_ray.core.sessions import (
    TERMINAL,
    KernelSpec,
    Reason,
    Session,
    SessionResult,
    SessionType,
    Status,
)

from .ports import ConnectAgent
from .views import kernel_spec
from .world import World

log = structlog.get_logger()

CALL_TIMEOUT_S = 15.0
BACK_OFF_S = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Create:
    spec: KernelSpec

    @property
    def key(self) -> tuple[str, KernelId]:
        return "create", self.spec.kernel_id


@dataclass(frozen=True, slots=True)
class Destroy:
    kernel_id: KernelId
    attempt: int
    """0: a stray, whatever its attempt."""
    reason: Reason
    forced: bool
    grace_s: float | None = None

    @property
    def key(self) -> tuple[str, KernelId]:
        return "destroy", self.kernel_id


@dataclass(frozen=True, slots=True)
class Restart:
    kernel_id: KernelId
    epoch: int

    @property
    def key(self) -> tuple[str, KernelId]:
        return "restart", self.kernel_id


@dataclass(frozen=True, slots=True)
class Startup:
    kernel_id: KernelId
    command: str
    timeout_s: float | None

    @property
    def key(self) -> tuple[str, KernelId]:
        return "startup", self.kernel_id


@dataclass(frozen=True, slots=True)
class SetRoute:
    kernel_id: KernelId
    name: str
    epoch: int

    @property
    def key(self) -> tuple[str, KernelId]:
        return "route", self.kernel_id


@dataclass(frozen=True, slots=True)
class Acknowledge:
    kernel_id: KernelId

    @property
    def key(self) -> tuple[str, KernelId]:
        return "acknowledge", self.kernel_id


Order = Create | Destroy | Restart | Startup | SetRoute | Acknowledge


@dataclass(slots=True)
class _Lane:
    """What one agent still has to be told."""

    agent_id: AgentId
    waiting: dict[tuple[str, KernelId], Order] = field(default_factory=dict)
    sending: set[tuple[str, KernelId]] = field(default_factory=set)
    taken: dict[tuple[str, KernelId], list[asyncio.Future[None]]] = field(default_factory=dict)
    runner: asyncio.Task[None] | None = None


class Orders:
    """Carries effects out. One call at a time per agent; what waits together goes together."""

    def __init__(self, world: World, connect: ConnectAgent) -> None:
        self._world = world
        self._connect = connect
        self._lanes: dict[AgentId, _Lane] = {}
        self._restarted: dict[KernelId, int] = {}
        self._begun: set[KernelId] = set()
        """Kernels whose agent has taken the order for the startup command."""
        self._stopped = False

    # ── what must be done ─────────────────────────────────────────────────────────────────────────────────────────

    def carry_out(self, session: Session, effects: Iterable[Effect]) -> None:
        """Give the orders that follow from effects; returns at once."""
        for effect in effects:
            match effect:
                case CreateKernels():
                    self.create(session, {kernel.id for kernel in session.kernels})
                case DestroyKernels(kernels, reason, forced, grace_s):
                    for kernel_id, agent_id in kernels:
                        self.give(agent_id, Destroy(kernel_id, session.attempt, reason, forced, grace_s))
                case RestartKernels(kernels):
                    for kernel_id, agent_id in kernels:
                        self._begun.discard(kernel_id)
                        self.give(agent_id, Restart(kernel_id, session.epoch))
                case RunStartup():
                    self._run_startup(session)
                case UpdateRoute():
                    self.update_route(session)
                case ReleaseDevices() | Enqueue() | Dequeue():
                    pass  # the change log has told the scheduler

    def create(self, session: Session, kernel_ids: set[KernelId]) -> None:
        """Order kernels that are on their way."""
        for kernel in session.kernels:
            if kernel.id in kernel_ids and kernel.agent_id is not None:
                self.give(kernel.agent_id, Create(kernel_spec(session, kernel)))

    def redrive(self, session: Session) -> None:
        """Give again what the session's record says must have been ordered, but for kernels to be made."""
        for kernel in session.kernels:
            if kernel.agent_id is None or kernel.status in TERMINAL:
                continue
            if session.status is Status.TERMINATING:
                grace_s = session.eviction.grace_s if session.eviction is not None else None
                self.give(kernel.agent_id, Destroy(kernel.id, session.attempt, session.reason, False, grace_s))
            elif kernel.status is Status.RESTARTING:
                self.give(kernel.agent_id, Restart(kernel.id, session.epoch))
        if session.status is Status.RUNNING:
            self._run_startup(session)
            if session.epoch:
                self.update_route(session)

    def redrive_lost_startup(self, session: Session) -> None:
        """Give the order for the startup command again when no agent has taken it yet."""
        if session.status is Status.RUNNING and session.main.id not in self._begun:
            self._run_startup(session)

    def _run_startup(self, session: Session) -> None:
        spec, kernel = session.spec, session.main
        is_batch = spec.type is SessionType.BATCH
        if kernel.agent_id is None or (not spec.startup_command and not is_batch):
            return
        if session.result is SessionResult.UNDEFINED:
            timeout_s = spec.batch_timeout_s if is_batch else None
            self.give(kernel.agent_id, Startup(kernel.id, spec.startup_command, timeout_s))

    def update_route(self, session: Session) -> None:
        """Tell the main kernel's agent the session's name and epoch."""
        kernel = session.main
        if kernel.agent_id is not None and kernel.status not in TERMINAL:
            self.give(kernel.agent_id, SetRoute(kernel.id, session.spec.name, session.epoch))

    def has_restarted(self, kernel_id: KernelId, epoch: int) -> bool:
        """Return whether the agent has taken the order for this restart."""
        return self._restarted.get(kernel_id) == epoch

    def is_sending(self, agent_id: AgentId, kernel_id: KernelId) -> bool:
        """Return whether an order about the kernel is on its way to the agent right now."""
        lane = self._lanes.get(agent_id)
        return lane is not None and any(key[1] == kernel_id for key in lane.sending)

    def destroy_stray(self, agent_id: AgentId, kernel_id: KernelId, reason: Reason) -> None:
        """End a kernel that nobody wants."""
        self.give(agent_id, Destroy(kernel_id, 0, reason, True))

    def acknowledge(self, agent_id: AgentId, kernel_id: KernelId) -> None:
        """Tell the agent that the end of a kernel is committed."""
        self.give(agent_id, Acknowledge(kernel_id))

    # ── giving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def give(self, agent_id: AgentId, order: Order) -> None:
        """Put an order in line; one of the same kind for the same kernel that still waits is replaced."""
        lane = self._lanes.setdefault(agent_id, _Lane(agent_id))
        known = lane.waiting.get(order.key)
        if isinstance(known, Destroy) and isinstance(order, Destroy) and known.forced:
            order = replace(order, forced=True)
        if isinstance(order, Create):  # a new attempt replaces what the agent remembers of the one before
            lane.waiting.pop(("acknowledge", order.spec.kernel_id), None)
        lane.waiting[order.key] = order
        if lane.runner is None and not self._stopped:
            lane.runner = asyncio.create_task(self._run(lane))

    async def until_taken(self, agent_id: AgentId, key: tuple[str, KernelId], timeout_s: float) -> None:
        """Wait until an order that was given has been taken, or has become moot.

        Raises:
            AgentUnavailable: it was not within ``timeout_s``; it is tried on.
            BackendError: the agent has refused it.
        """
        lane = self._lanes.get(agent_id)
        if lane is None or (key not in lane.waiting and key not in lane.sending):
            return
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.taken.setdefault(key, []).append(taken)
        try:
            await asyncio.wait_for(taken, timeout_s)
        except TimeoutError:
            raise AgentUnavailable(
                f"the change is saved, but node {agent_id} has not taken it yet; it is told as soon as it answers",
                agent_id=agent_id,
            ) from None

    def prune(self) -> None:
        """Forget what concerns kernels that are no more."""
        for kernel_id in [k for k in self._restarted if self._world.book.of_kernel(k) is None]:
            del self._restarted[kernel_id]
        self._begun = {kernel_id for kernel_id in self._begun if self._world.book.of_kernel(kernel_id) is not None}

    async def settle(self) -> None:
        """Wait until no order waits or is on its way; for tests and for a clean end."""
        while runners := [lane.runner for lane in self._lanes.values() if lane.runner is not None]:
            await asyncio.gather(*runners)

    async def stop(self) -> None:
        """Stop giving orders; those that wait follow from the records again."""
        self._stopped = True
        runners = [lane.runner for lane in self._lanes.values() if lane.runner is not None]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def _run(self, lane: _Lane) -> None:
        failures = 0
        try:
            while batch := self._next_batch(lane):
                lane.sending = {order.key for order in batch}
                try:
                    await asyncio.wait_for(self._send(lane.agent_id, batch), CALL_TIMEOUT_S)
                except (Unavailable, TimeoutError) as exc:
                    log.warning("order.not_taken", agent_id=lane.agent_id, order=batch[0].key[0], error=repr(exc))
                    lane.waiting = {**{order.key: order for order in batch}, **lane.waiting}
                    await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
                    failures += 1
                    continue
                except BackendError as exc:  # must not hold up the others; sweep and deadline deal with it
                    log.warning("order.refused", agent_id=lane.agent_id, order=batch[0].key[0], error=exc.message)
                    self._refused(lane, batch, exc)
                except Exception as exc:
                    log.exception("order.failed", agent_id=lane.agent_id, order=batch[0].key[0])
                    self._refused(lane, batch, InternalError(f"{lane.agent_id} failed: {exc!r}"))
                else:
                    self._taken(lane, batch)
                failures = 0
        finally:
            lane.runner = None
            lane.sending = set()

    def _next_batch(self, lane: _Lane) -> list[Order]:
        """Take the first order and all others of its kind out of the line; those that are moot are dropped."""
        batch: list[Order] = []
        for key, order in list(lane.waiting.items()):
            if batch and not _goes_with(order, batch[0]):
                continue
            del lane.waiting[key]
            if self._is_wanted(lane.agent_id, order):
                batch.append(order)
            else:
                self._release(lane, order)
        return batch

    async def _send(self, agent_id: AgentId, batch: Sequence[Order]) -> None:
        agent = self._connect(agent_id)
        match batch[0]:
            case Create():
                await agent.create_kernels([order.spec for order in batch if isinstance(order, Create)])
            case Destroy(reason=reason, forced=forced, grace_s=grace_s):
                await agent.destroy_kernels(_kernels(batch), reason, forced=forced, grace_s=grace_s)
            case Restart(epoch=epoch):
                await agent.restart_kernels(_kernels(batch), epoch)
            case Acknowledge():
                await agent.acknowledge(_kernels(batch))
            case Startup(kernel_id, command, timeout_s):
                await agent.run_startup(kernel_id, command, timeout_s)
            case SetRoute(kernel_id, name, epoch):
                await agent.update_route(kernel_id, name, epoch)

    def _taken(self, lane: _Lane, batch: Sequence[Order]) -> None:
        for order in batch:
            if isinstance(order, Restart):
                self._restarted[order.kernel_id] = order.epoch
            elif isinstance(order, Startup):
                self._begun.add(order.kernel_id)
            self._release(lane, order)

    def _refused(self, lane: _Lane, batch: Sequence[Order], error: BackendError) -> None:
        for order in batch:
            self._release(lane, order, error)

    @staticmethod
    def _release(lane: _Lane, order: Order, error: BackendError | None = None) -> None:
        for taken in lane.taken.pop(order.key, ()):
            if taken.done():
                continue
            if error is None:
                taken.set_result(None)
            else:
                taken.set_exception(error)

    def _is_wanted(self, agent_id: AgentId, order: Order) -> bool:
        kernel_id = order.key[1]
        if isinstance(order, Acknowledge):
            return True
        if isinstance(order, Destroy) and not order.attempt:
            node = self._world.nodes.get(agent_id)
            return node is not None and kernel_id in node.strays
        session = self._world.book.of_kernel(kernel_id)
        kernel = None if session is None else session.kernel(kernel_id)
        if session is None or kernel is None or kernel.agent_id != agent_id or kernel.status in TERMINAL:
            return False
        match order:
            case Create(spec):
                # For one that runs already, this is how an agent that has lost its record gets it back.
                return spec.attempt == session.attempt and kernel.status is not Status.TERMINATING
            case Destroy():
                return order.attempt == session.attempt
            case Restart():
                return session.status is Status.RESTARTING and order.epoch == session.epoch
            case Startup():
                return session.status is Status.RUNNING
            case SetRoute():
                return order.epoch == session.epoch


def _goes_with(order: Order, first: Order) -> bool:
    """Return whether an order can go to the agent in the same call."""
    match order, first:
        case Destroy(), Destroy():
            return (order.reason, order.forced, order.grace_s) == (first.reason, first.forced, first.grace_s)
        case Restart(), Restart():
            return order.epoch == first.epoch
        case (Create(), Create()) | (Acknowledge(), Acknowledge()):
            return True
        case _:
            return False


def _kernels(batch: Sequence[Order]) -> list[KernelId]:
    return [order.key[1] for order in batch]

"""One trial: the real Manager, Sokovan and policy host among machines that live by themselves, while everything fails.

Virtual time, one event loop, one seed: the same seed takes the same steps. While faults go on, every commit and the
Manager's memory are judged; after they have stopped, everything that was accepted must come to its end, and nothing may
be left.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from random import Random
from typing import Any, TypeVar, cast

import structlog

from actors.contracts import AgentContract
from actors.manager import Manager
from actors.policy_host import PolicyHost
from actors.sokovan import Sokovan
from backendai_ray.config import Settings
from backendai_ray.core.errors import AgentUnavailable, BackendError
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.quotas import Limits, Scope, ScopeKind
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.scheduling import SchedulingPolicy
from backendai_ray.core.sessions import STARTING, TERMINAL, Session, SessionType, Status
from backendai_ray.plugins import AGENT_SELECTIONS, SCHEDULING_POLICIES, installed

from .machines import Machine
from .processes import Process, own_tasks
from .users import OWNERS, Users
from .virtual_time import StandsStill, VirtualLoop
from .watched_store import WatchedStore
from .wire import CALM, Weather, Wire

T = TypeVar("T")

GROUP = ResourceGroupName("default")
BEGIN = 1_000_000.0
FAULTS_S = 60.0
"""How long things go wrong."""
RECOVERED_S = 90.0
"""So long after the last fault nothing may still be on its way."""
ENDED_S = 400.0
"""So long after the last fault everything must have ended."""
_MOVING = STARTING | {Status.RESTARTING, Status.TERMINATING}
_MOST_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a trial."""

    seed: int
    violations: tuple[str, ...]
    digest: str
    """Of every status change, in order: two runs of a seed have the same."""
    sessions: int
    commits: int
    calls: int
    virtual_s: float
    disasters: tuple[str, ...] = ()


def run_trial(seed: int, *, sessions: int = 12) -> Verdict:
    """Run one trial.

    Args:
        seed: Decides everything.
        sessions: How many people submit.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        own_tasks(loop)
        trial = Trial(seed, cast(VirtualLoop, loop))
        with _log_to(trial.violated):
            try:
                runner.run(trial.run(sessions))
            except StandsStill as exc:
                trial.violated(str(exc))
        return trial.verdict()


class Trial:
    """See the module."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.violations: list[str] = []
        self.disasters: list[str] = []
        self._loop = loop
        self._ids = count(1)
        self._store = WatchedStore(self.dice, self.violated)
        self._wire = Wire(self.dice, self.violated)
        self._settings = _settings(self.dice)
        self._machines = [
            Machine(AgentId(f"a{number}"), self.dice, self._wire, self.violated, cores=cores, gpus=gpus)
            for number, (cores, gpus) in enumerate([(4, 2), (2, 1), (2, 0)], 1)
        ]
        for machine in self._machines:
            for device in machine.devices:
                self._store.capacity[machine.agent_id, device.slot, device.id] = device.capacity
        self._users = Users(self.dice, self._wire, self.clock)
        self._world = Process("world")
        self._manager: Manager | None = None
        self._host: SimPolicyHost | None = None
        self._are_faults_over = False
        self._check_is_due = False
        loop.set_exception_handler(self._unhandled)

    def clock(self) -> float:
        """Return Unix seconds of the virtual time."""
        return BEGIN + self._loop.time()

    def violated(self, what: str) -> None:
        """Take note of something that must not happen."""
        if len(self.violations) < _MOST_VIOLATIONS:
            self.violations.append(f"at {self._loop.time():.3f} s: {what}")

    def verdict(self) -> Verdict:
        """Return what came of it."""
        changes = repr([(c.session_id, c.kernel_id, c.after, c.reason, round(c.at, 6)) for c in self._store.changes])
        return Verdict(
            seed=self.seed,
            violations=tuple(self.violations),
            digest=hashlib.sha256(changes.encode()).hexdigest()[:16],
            sessions=len(self._users.acknowledged),
            commits=len(self._store.commits),
            calls=self._wire.calls,
            virtual_s=self._loop.time(),
            disasters=tuple(self.disasters),
        )

    # ── the course of a trial ─────────────────────────────────────────────────────────────────────────────────────

    async def run(self, sessions: int) -> None:
        """Let everything fail for a while, then see whether all comes to its end."""
        watching = self._world.spawn(self._watch())
        for machine in self._machines:
            machine.boot_agent()
        self._boot_manager()
        self._boot_host()
        self._boot_sokovan()
        self._wire.weather = _weather(self.dice.choice([0.3, 1.0, 3.0]))
        self._store.unanswered = self.dice.choice([0.0, 0.05])
        if self.dice.random() < 0.4:
            self._world.spawn(self._limit_somebody())
        at_work = self._world.spawn(self._users.work(sessions))
        await self._disasters()
        self._make_everything_well()
        over_at = self._loop.time()
        while not self.violations and not await self._has_ended(over_at, at_work):  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(2.0)
        watching.cancel()

    async def _limit_somebody(self) -> None:
        """Give one keypair a quota; whatever it is, one session at a time may run."""
        limits = Limits(sessions=self.dice.randint(1, 2), pending=self.dice.choice([None, 4]))
        await asyncio.sleep(self.dice.uniform(0, FAULTS_S))
        self._note(f"quota {limits}")
        await self._tell_manager("set_quota", Scope(ScopeKind.KEYPAIR, OWNERS[0]), limits)

    async def _tell_manager(self, method: str, *args: Any) -> None:
        """Tell it once; nobody asks again if that fails."""
        try:
            await getattr(self._wire.peer(self._world, "manager"), method)(*args)
        except BackendError:
            pass

    def _make_everything_well(self) -> None:
        self._are_faults_over = True
        self._wire.weather, self._wire.cut = CALM, set()
        self._store.unanswered, self._store.is_away = 0.0, False
        for machine in self._machines:
            if machine.agent is None:
                machine.boot_agent()
        for name, boot in (
            ("manager", self._boot_manager),
            ("sokovan", self._boot_sokovan),
            ("policy", self._boot_host),
        ):
            if self._wire.server(name) is None:
                boot()

    async def _has_ended(self, over_at: float, at_work: asyncio.Task[None]) -> bool:
        """Return whether all has ended and nothing is left; end the sessions that run until somebody ends them."""
        passed = self._loop.time() - over_at
        live = [session for session in self._store.records.values() if not session.is_terminal]
        stuck = [s for s in live if s.status in _MOVING and self.clock() - s.status_at > RECOVERED_S]
        if passed > RECOVERED_S and stuck:
            self.violated(f"stuck: {', '.join(map(_told, stuck))}")
        if passed > ENDED_S and live:
            self.violated(f"never came to its end: {', '.join(map(_told, live))}")
        for session in live:
            if session.status is Status.RUNNING and session.spec.type is not SessionType.BATCH and passed > 20.0:
                await self._users.terminate(session.spec.access_key, session.id)
        left = ["somebody still waits for an answer"] if not at_work.done() else []
        left += [] if live else self._left_over()
        if passed > ENDED_S:
            for sentence in left:
                self.violated(sentence)
        return not live and not left

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        """Judge the Manager's memory whenever it is at rest."""
        seen = -1
        while True:
            await asyncio.sleep(0.25)
            if len(self._store.commits) != seen:
                seen = len(self._store.commits)
                await self._judge_memory()

    async def _judge_memory(self) -> None:
        parts = self._manager._parts if self._manager is not None else None
        if parts is None or self._wire.server("manager") is None or self._store.in_flight or parts.journal._unsure:
            return
        assert self._manager is not None
        if not self._manager._is_ready.is_set():
            return
        for sentence in await self._manager.validate():
            self.violated(sentence)

    def _left_over(self) -> Iterator[str]:
        stored = self._store.records
        for key, session_id in self._users.acknowledged.items():
            if session_id not in stored:
                yield f"session {session_id} was accepted and is lost"
            twins = [s.id for s in stored.values() if f"key-{s.spec.tag}" == key]
            if len(twins) != 1:
                yield f"the request {key} led to {len(twins)} sessions"
        for key in self._users.refused:
            if twins := [s.id for s in stored.values() if f"key-{s.spec.tag}" == key]:
                yield f"the request {key} was refused, and led to {twins}"
        for session in stored.values():
            if any(kernel.status not in TERMINAL for kernel in session.kernels):
                yield f"{_told(session)} has kernels that have not ended"
        for machine in self._machines:
            if machine.disk:
                yield f"{machine.agent_id} still knows {[_record_told(r) for r in machine.disk.values()]}"
            if machine.held.free() != machine.held.capacity():
                yield f"{machine.agent_id}: {machine.held.held} is still held"
        parts = self._manager._parts if self._manager is not None else None
        if parts is None:
            yield "the Manager is not there"
            return
        for node in parts.world.nodes:
            if node.unschedulable() or parts.world.ledger.occupied(node.agent_id):
                yield f"{node.agent_id}: {node.unschedulable() or 'something is still counted as held'}"
        if self._host is not None and self._host.believes():
            yield f"the policy host still believes in {self._host.believes()}"

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.violated(f"unhandled: {context.get('message')}: {context.get('exception')!r}")

    # ── disasters ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _disasters(self) -> None:
        kinds: list[Callable[[], None]] = [
            self._kill_manager,
            self._kill_sokovan,
            self._kill_host,
            self._kill_agent,
            self._kill_agent,
            self._cut_off,
            self._power_off,
            self._store_goes_away,
        ]
        # Each trial has its own mix, so that rare kinds also come alone.
        kinds = [kind for kind in kinds if self.dice.random() < 0.7] or kinds
        mean_s = self.dice.choice([2.0, 5.0, 15.0])
        while self._loop.time() < FAULTS_S:
            await asyncio.sleep(min(self.dice.expovariate(1 / mean_s), FAULTS_S - self._loop.time() + 0.01))
            if self._loop.time() < FAULTS_S:
                self.dice.choice(kinds)()

    def _note(self, what: str) -> None:
        self.disasters.append(f"{self._loop.time():.3f} {what}")

    def _later(self, mean_s: float, what: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(self.dice.expovariate(1 / mean_s))
            if not self._are_faults_over:
                what()

        self._world.spawn(wait())

    def _kill(self, name: str, boot: Callable[[], None], mean_s: float) -> None:
        server = self._wire.server(name)
        if server is None:
            return
        self._note(f"kill {name}")
        server.process.kill()
        self._later(mean_s, lambda: None if self._wire.server(name) else boot())

    def _kill_manager(self) -> None:
        self._kill("manager", self._boot_manager, 2.0)

    def _kill_sokovan(self) -> None:
        self._kill("sokovan", self._boot_sokovan, 2.0)

    def _kill_host(self) -> None:
        self._kill("policy", self._boot_host, 1.0)

    def _kill_agent(self) -> None:
        machine = self.dice.choice(self._machines)
        self._note(f"kill agent {machine.agent_id}")
        machine.kill_agent()
        self._boot_later(machine, self.dice.choice([2.0, 2.0, 25.0]))

    def _boot_later(self, machine: Machine, mean_s: float) -> None:
        self._later(mean_s, lambda: None if machine.agent is not None else machine.boot_agent())

    def _power_off(self) -> None:
        machine, keeps_disk = self.dice.choice(self._machines), self.dice.random() < 0.7
        self._note(f"power off {machine.agent_id}, the disk {'stays' if keeps_disk else 'is lost'}")
        machine.power_off(keeps_disk=keeps_disk)
        self._boot_later(machine, self.dice.choice([3.0, 30.0]))
        if self.dice.random() < 0.5:  # the node watcher may notice, or not
            self._world.spawn(self._tell_manager("agent_gone", machine.agent_id))

    def _cut_off(self) -> None:
        name = self.dice.choice([f"agent:{machine.agent_id}" for machine in self._machines] + ["sokovan", "policy"])
        self._note(f"cut off {name}")
        self._wire.cut.add(name)
        self._later(self.dice.choice([2.0, 30.0]), lambda: self._wire.cut.discard(name))

    def _store_goes_away(self) -> None:
        self._note("the store goes away")
        self._store.is_away = True

        def back() -> None:
            self._store.is_away = False

        self._later(3.0, back)

    # ── booting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _boot_manager(self) -> None:
        process = Process("manager")
        link = self._store.link(process)

        async def open_store() -> Any:
            return link

        self._manager = manager = Manager(
            self._settings,
            connect_agent=partial(self._connect_agent, process),
            sokovan=self._wire.peer(process, "sokovan"),
            resolve_report=_resolve,
            open_store=open_store,
            open_relay=lambda _: None,
            clock=self.clock,
            new_id=lambda: f"00000000-0000-4000-8000-{next(self._ids):012x}",
        )
        self._wire.listen("manager", process, manager)
        process.spawn(_until_started(manager))

    def _connect_agent(self, process: Process, agent_id: AgentId) -> AgentContract:
        return cast(AgentContract, self._wire.peer(process, f"agent:{agent_id}", unavailable=AgentUnavailable))

    def _boot_host(self) -> None:
        process = Process("policy")
        self._host = SimPolicyHost(GROUP, resolve=_resolve, clock=self.clock, load=_load_policy)
        self._wire.listen("policy", process, self._host)

    def _boot_sokovan(self) -> None:
        process = Process("sokovan")

        async def connect(group: ResourceGroupName) -> Any:
            return self._wire.peer(process, "policy")

        sokovan = Sokovan(
            self._settings,
            manager=self._wire.peer(process, "manager"),
            connect_host=connect,
            clock=self.clock,
            random=Random(self.seed),
        )
        self._wire.listen("sokovan", process, sokovan)
        process.spawn(_until_started(sokovan))


class SimPolicyHost(PolicyHost):
    """Decides at once instead of in a thread."""

    async def _contained(self, call: Callable[[], T]) -> T:
        return call()

    def believes(self) -> list[str]:
        """Return what waits and what runs, as far as it knows."""
        snapshot = self._mirror.snapshot(0.0)
        return [*(session.id for session in snapshot.pending), *(kernel.kernel_id for kernel in snapshot.running)]


async def _until_started(actor: Any) -> None:
    """Start an actor as its composition root does: again until it works."""
    while True:
        try:
            await actor.start()
            return
        except Exception:  # noqa: BLE001 - the store or the Manager is away
            await asyncio.sleep(0.5)


async def _resolve(report: object) -> NodeReport:
    assert isinstance(report, NodeReport)
    return report


@cache
def _installed(group: str) -> Mapping[str, Any]:
    """Return the plug-ins of a group; looking for them takes as long as a whole trial."""
    return {name: point.load() for name, point in installed(group).items()}


def _load_policy(name: str, selection: str, options: Mapping[str, Any]) -> SchedulingPolicy:
    policy: SchedulingPolicy = _installed(SCHEDULING_POLICIES)[name](
        selection=_installed(AGENT_SELECTIONS)[selection](), **options
    )
    return policy


def _weather(harshness: float) -> Weather:
    mild = Weather()
    parts = {name: getattr(mild, name) * harshness for name in ("lost", "refused", "unanswered", "doubled", "slow")}
    return Weather(**parts)


def _settings(dice: Random) -> Settings:
    """Return settings with short deadlines: what takes hours elsewhere happens within a minute."""
    return Settings.model_validate(
        {
            "manager": {
                "heartbeat_timeout_s": 6,
                "agent_lost_after_s": 15,
                "sweep_interval_s": 3,
                "scheduled_timeout_s": 10,
                "preparing_timeout_s": 10,
                "pulling_timeout_s": 15,
                "creating_timeout_s": 15,
                "terminating_timeout_s": 8,
            },
            "scheduler": {
                "sweep_interval_s": 5,
                "policy": dice.choice(["fifo", "fifo", "lifo", "drf", "backfill"]),
                "selection": dice.choice(["concentrated", "dispersed"]),
            },
        }
    )


def _told(session: Session) -> str:
    return f"{session.id[-4:]} {session.status} since {session.status_at - BEGIN:.1f} s ({session.message})"


def _record_told(record: Any) -> str:
    return f"{record.spec.kernel_id[-4:]} {record.status}"


@contextmanager
def _log_to(violated: Callable[[str], None]) -> Iterator[None]:
    """Log nothing meanwhile; an exception that was only logged is a bug all the same."""

    def judge(_logger: Any, _method: str, event: Any) -> Any:
        if event.get("exc_info"):
            exc = event["exc_info"] if isinstance(event["exc_info"], BaseException) else sys.exc_info()[1]
            where = "".join(traceback.format_exception(exc)[-2:]) if exc is not None else ""
            violated(f"logged: {event.get('event')}: {exc!r} {where}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[judge],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)

"""The composition root: the one place that turns plain classes into named, long-lived Ray actors.

An actor here is a thin shell: it offers the methods of its contract and passes each call on to a plain object that it
builds in its own process, from what that process has (peers, the store, the object store). The class of that object
is imported there and nowhere else, so no actor carries the libraries of another. ``__init__`` only schedules
:func:`_boot`, which starts the real work and tries again until it succeeds, because an exception in ``__init__`` would
kill a Ray actor for good.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import ray
import structlog
from pydantic import SecretStr

from actors.contracts import (
    AgentContract,
    FrontDoorContract,
    Keypair,
    ManagerContract,
    PolicyHostContract,
    SokovanContract,
)
from actors.direct_line import LineServer, line_path, near_agent
from actors.node_watcher import NODE_ID_LABEL, NodeWatcher, RayNode
from actors.peers import (
    MANAGER,
    SOKOVAN,
    agent_actor_name,
    agent_peer,
    manager_peer,
    policy_host_actor_name,
    policy_host_peer,
    sokovan_peer,
)
from backendai_ray.config import Settings
from backendai_ray.core.errors import Unavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName
from backendai_ray.core.reports import NodeReport
from backendai_ray.core.sessions import TERMINAL, Status
from backendai_ray.logs import configure_logging

log = structlog.get_logger()

_BOOT_RETRY_S = (0.2, 0.5, 1.0, 2.0)
_NODE_LIST_TIMEOUT_S = 5.0
_REPORT_TIMEOUT_S = 5.0
_AGENT_PINGS = 4
_AGENT_PING_PAUSE_S = 0.5
_DEPLOY_TIMEOUT_S = 60.0
_POLL_S = 0.1


async def _boot(name: str, start: Callable[[], Awaitable[None]]) -> None:
    attempt = 0
    while True:
        try:
            await start()
        except Exception:
            delay = _BOOT_RETRY_S[min(attempt, len(_BOOT_RETRY_S) - 1)]
            log.exception("actor.start_failed", actor=name, retry_in_s=delay)
            attempt += 1
            await asyncio.sleep(delay)
        else:
            log.info("actor.started", actor=name)
            return


def _set_up(settings: Settings, name: str) -> None:
    configure_logging(settings.data_dir / "logs", name.replace(":", "-"), settings.log_level)


async def _resolve_report(handle: object) -> NodeReport:
    """Return the report behind a one-element list with an object-store reference.

    Raises:
        Unavailable: its owner, the agent, has died since.
    """
    if not isinstance(handle, list):
        raise TypeError(f"a report handle is a list with one reference, not {type(handle).__name__}")
    try:
        async with asyncio.timeout(_REPORT_TIMEOUT_S):
            report = await handle[0]
    except (ray.exceptions.RayError, TimeoutError) as exc:
        raise Unavailable(f"the node's report is gone ({type(exc).__name__})") from None
    if not isinstance(report, NodeReport):
        raise TypeError(f"a report handle led to {type(report).__name__}")
    return report


C = TypeVar("C", bound=type)


def _offers(*contracts: type) -> Callable[[C], C]:
    """Give a shell the asynchronous methods of these contracts; each passes the call on to ``self._inner``."""

    def decorate(shell: C) -> C:
        for contract in contracts:
            for name, member in vars(contract).items():
                if inspect.iscoroutinefunction(member) and name not in vars(shell):
                    setattr(shell, name, _passing_on(name))
        return shell

    return decorate


def _passing_on(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._inner, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


@_offers(ManagerContract)
class ManagerActor:
    """The Manager, and the watcher that keeps an agent on every node."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        from actors.manager.manager import Manager

        _set_up(settings, MANAGER)
        namespace = settings.namespace
        self._inner = Manager(
            settings,
            connect_agent=lambda agent_id: agent_peer(namespace, agent_id),
            sokovan=sokovan_peer(namespace),
            resolve_report=_resolve_report,
        )
        self._watcher = NodeWatcher(
            list_nodes=_list_nodes,
            ensure_agent=lambda agent_id, ray_id: _ensure_agent(settings, agent_id, ray_id),
            joined=self._inner.agent_joined,
            gone=self._inner.agent_gone,
        )
        self._boot = asyncio.create_task(_boot(MANAGER, self._inner.start))
        self._watch = asyncio.create_task(self._watch_when_started())

    async def _watch_when_started(self) -> None:
        await self._boot
        await self._watcher.run()

    async def bootstrap_credentials(self) -> Keypair:
        """Return the first admin's keypair, once the Manager has started."""
        return await self._inner.bootstrap_credentials()


@_offers(SokovanContract)
class SokovanActor:
    """Sokovan, which makes a policy actor for each resource group."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        from actors.sokovan import Sokovan

        _set_up(settings, SOKOVAN)
        self._inner = Sokovan(
            settings,
            manager=manager_peer(settings.namespace),
            connect_host=lambda group: _connect_host(settings, group),
            replace_host=lambda group: _replace_host(settings, group),
        )
        self._boot = asyncio.create_task(_boot(SOKOVAN, self._inner.start))

    async def ping(self) -> bool:
        """Return whether it has started."""
        await self._boot
        return True


@_offers(PolicyHostContract)
class PolicyHostActor:
    """The policy actor of one resource group."""

    async def __init__(self, settings: Settings, group: ResourceGroupName) -> None:  # type: ignore[misc]
        from actors.policy_host import PolicyHost

        _set_up(settings, policy_host_actor_name(group))
        # A large world is long-lived: the garbage collector need not walk through it in the middle of a pass.
        self._inner = PolicyHost(group, resolve=_resolve_report, after_world=gc.freeze)


@_offers(AgentContract)
class AgentActor:
    """The agent of one node."""

    async def __init__(self, settings: Settings, agent_id: AgentId) -> None:  # type: ignore[misc]
        from actors.agent.agent import Agent

        _set_up(settings, agent_actor_name(agent_id))
        self._inner = Agent(
            agent_id, settings, manager=manager_peer(settings.namespace), put_report=lambda report: [ray.put(report)]
        )
        self._line = LineServer(self._inner)
        self._line_path = line_path(settings.data_dir, agent_id)
        self._boot = asyncio.create_task(_boot(agent_actor_name(agent_id), self._start))

    async def _start(self) -> None:
        await self._inner.start()
        try:
            await self._line.open(self._line_path)
        except OSError as exc:
            log.warning("agent.no_direct_line", path=str(self._line_path), error=str(exc))  # all goes through Ray then


@_offers(FrontDoorContract)
class FrontDoorActor:
    """One HTTP front door."""

    async def __init__(self, settings: Settings, index: int, port: int, bus_url: str) -> None:  # type: ignore[misc]
        from actors.front_door import FrontDoor

        _set_up(settings, f"front-door:{index}")
        namespace = settings.namespace
        self._inner = FrontDoor(
            settings,
            port=port,
            bus_url=bus_url,
            manager=manager_peer(namespace),
            connect_agent=cache(
                lambda agent_id: near_agent(agent_peer(namespace, agent_id), line_path(settings.data_dir, agent_id))
            ),
            sokovan=sokovan_peer(namespace),
        )
        self._boot = asyncio.create_task(_boot(f"front-door:{index}", self._inner.start))


def _actor(cls: type, settings: Settings, name: str, *args: Any, **options: Any) -> Any:
    """Return the actor of that name, made when it is not there: detached, without a share of the CPUs, restarted."""
    return (
        ray.remote(cls)
        .options(
            name=name,
            namespace=settings.namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=2000,
            enable_task_events=False,
            **options,
        )
        .remote(settings, *args)
    )


async def _list_nodes() -> Sequence[RayNode]:
    async with asyncio.timeout(_NODE_LIST_TIMEOUT_S):
        rows = await asyncio.to_thread(ray.nodes)
    return [
        RayNode(row["NodeID"], row["NodeManagerHostname"], (row.get("Labels") or {}).get(NODE_ID_LABEL, ""))
        for row in rows
        if row["Alive"]
    ]


async def _ensure_agent(settings: Settings, agent_id: AgentId, ray_id: str) -> None:
    """Return once the agent of that node answers.

    An actor that stays silent is pinned to a node that is gone (a node that comes back has another Ray id) and can
    never restart: it makes room for a new one.
    """
    name = agent_actor_name(agent_id)
    handle = await _agent_actor(settings, name, agent_id, ray_id)
    peer = agent_peer(settings.namespace, agent_id)
    for _ in range(_AGENT_PINGS):
        try:
            await peer.ping()
        except Unavailable:
            await asyncio.sleep(_AGENT_PING_PAUSE_S)
        else:
            return
    log.warning("nodes.agent_replaced", agent_id=agent_id)
    ray.kill(handle)
    await _agent_actor(settings, name, agent_id, ray_id)
    await peer.ping()


async def _agent_actor(settings: Settings, name: str, agent_id: AgentId, ray_id: str) -> Any:
    selector = {"ray.io/node-id": ray_id}
    return await asyncio.to_thread(_actor, AgentActor, settings, name, agent_id, label_selector=selector)


async def _connect_host(settings: Settings, group: ResourceGroupName) -> Any:
    await asyncio.to_thread(_actor, PolicyHostActor, settings, policy_host_actor_name(group), group)
    return policy_host_peer(settings.namespace, group)


async def _replace_host(settings: Settings, group: ResourceGroupName) -> None:
    """End the process of a policy actor, whatever hangs in it; Ray starts a fresh one under the same name."""
    try:
        async with asyncio.timeout(_NODE_LIST_TIMEOUT_S):
            handle = await asyncio.to_thread(ray.get_actor, policy_host_actor_name(group), settings.namespace)
            await asyncio.to_thread(ray.kill, handle, no_restart=False)
    except (ValueError, TimeoutError, ray.exceptions.RayError) as exc:
        log.warning("policy.not_replaced", group=group, error=str(exc))


# ── deploying and taking down ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a client needs to reach a cluster, and what ``bai`` needs to end it."""

    endpoints: tuple[str, ...]
    access_key: str
    secret_key: str


async def deploy(settings: Settings, *, bus_url: str, ports: Sequence[int]) -> Deployment:
    """Make sure that all actors are there and answer; repeating it changes nothing.

    Args:
        settings: The cluster's settings; a running actor keeps the ones it was made with.
        bus_url: Where the event bus is.
        ports: One per front door.

    Raises:
        Unavailable: an actor did not start in time; its log says why.
    """
    named = settings.model_copy(update={"bus": settings.bus.model_copy(update={"url": SecretStr(bus_url)})})
    manager = _actor(ManagerActor, named, MANAGER)
    sokovan = _actor(SokovanActor, named, SOKOVAN)
    doors = [
        _actor(FrontDoorActor, named, f"front-door:{index}", index, port, bus_url) for index, port in enumerate(ports)
    ]
    try:
        async with asyncio.timeout(_DEPLOY_TIMEOUT_S):
            keypair = await manager.bootstrap_credentials.remote()
            await sokovan.ping.remote()
            addresses = await asyncio.gather(*(door.address.remote() for door in doors))
    except TimeoutError:
        raise Unavailable(
            f"the actors did not start within {_DEPLOY_TIMEOUT_S:g} s; see {settings.data_dir / 'logs'}"
        ) from None
    endpoints = (settings.api.advertised_url,) if settings.api.advertised_url else tuple(addresses)
    return Deployment(endpoints=endpoints, access_key=str(keypair.access_key), secret_key=keypair.secret_key)


async def wait_for_node(settings: Settings, *, timeout_s: float) -> bool:
    """Return whether a node takes sessions within ``timeout_s``."""
    manager = manager_peer(settings.namespace)
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not any(agent.schedulable for agent in await manager.agents()):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def drain(settings: Settings, *, timeout_s: float) -> int:
    """End all sessions and what was started ahead for others; return how many sessions are left after ``timeout_s``."""
    manager = manager_peer(settings.namespace)
    deadline = asyncio.get_running_loop().time() + timeout_s
    asked: set[str] = set()
    while True:
        page = await manager.sessions(
            None, statuses=[s.value for s in Status if s not in TERMINAL], limit=1000, offset=0
        )
        for session in page.sessions:
            if session.id not in asked:
                asked.add(session.id)
                await manager.terminate(
                    session.spec.access_key, session.id, forced=True, recursive=False, request_id="bai-down"
                )
        if not page.total or asyncio.get_running_loop().time() > deadline:
            await _drop_spares(settings)
            return page.total
        await asyncio.sleep(_POLL_S)


async def _drop_spares(settings: Settings) -> None:
    """Have every agent remove what it started ahead; one that does not answer does so when it comes back."""
    agents = [agent_peer(settings.namespace, row.agent_id) for row in await manager_peer(settings.namespace).agents()]
    await asyncio.gather(*(agent.drop_spares() for agent in agents), return_exceptions=True)

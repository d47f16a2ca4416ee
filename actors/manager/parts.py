"""The Manager's parts, put together once the store is open."""

from __future__ import annotations

from dataclasses import dataclass

from actors.contracts import Keypair, SokovanContract
from backendai_ray.config import ManagerSettings, Settings
from backendai_ray.core.ids import ResourceGroupName
from backendai_ray.core.lifecycle import Deadlines
from backendai_ray.core.usage import LOOKBACK_S

from .bootstrap import load_first_keypair, load_groups
from .chronicle import Chronicle
from .dependencies import note_dependencies
from .journal import Journal
from .lookup import Lookup
from .minding import Minder
from .orders import Orders
from .placing import Placing
from .ports import Clock, ConnectAgent, ManagerStore, NewId, Relay
from .quota_desk import QuotaDesk
from .reconcile import Reconciler
from .registrar import Registrar
from .submission import Submission
from .waker import Waker
from .world import World

REMEMBERED_ENDS = 500
"""Ended sessions that are looked at, at the start, for how long sessions run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One of each."""

    store: ManagerStore
    relay: Relay | None
    world: World
    orders: Orders
    waker: Waker
    journal: Journal
    lookup: Lookup
    submission: Submission
    placing: Placing
    chronicle: Chronicle
    reconciler: Reconciler
    minder: Minder
    registrar: Registrar
    quota_desk: QuotaDesk
    first_keypair: Keypair


def deadlines_of(settings: ManagerSettings) -> Deadlines:
    """Return how long each state may last."""
    return Deadlines(
        pending=settings.pending_timeout_s,
        pending_by_group={ResourceGroupName(name): s for name, s in settings.pending_timeout_by_group_s.items()},
        scheduled=settings.scheduled_timeout_s,
        preparing=settings.preparing_timeout_s,
        pulling=settings.pulling_timeout_s,
        creating=settings.creating_timeout_s,
        restarting=settings.creating_timeout_s,
        terminating=settings.terminating_timeout_s,
        agent_lost=settings.agent_lost_after_s,
    )


async def load(
    settings: Settings,
    *,
    store: ManagerStore,
    relay: Relay | None,
    connect_agent: ConnectAgent,
    sokovan: SokovanContract,
    clock: Clock,
    new_id: NewId,
) -> Parts:
    """Put the parts together and load what the store knows.

    Raises:
        StoreUnavailable: the store went away meanwhile.
    """
    limits = settings.manager
    world = World(new_id(), deadlines_of(limits))
    orders = Orders(world, connect_agent)
    waker = Waker(sokovan)
    journal = Journal(world, store, orders, waker, clock, relay)
    lookup = Lookup(world, store)
    chronicle = Chronicle(world.book, store, clock)
    reconciler = Reconciler(world, journal, orders, waker, connect_agent, clock)
    quota_desk = QuotaDesk(world, store, waker)
    minder = Minder(limits, world, journal, store, orders, reconciler, quota_desk, waker, clock)
    first_keypair = await load_first_keypair(store, clock())
    await _load_world(world, store, settings, clock)
    return Parts(
        store=store,
        relay=relay,
        world=world,
        orders=orders,
        waker=waker,
        journal=journal,
        lookup=lookup,
        submission=Submission(limits, world, journal, store, lookup, clock, new_id),
        placing=Placing(world, journal, orders, chronicle, clock),
        chronicle=chronicle,
        reconciler=reconciler,
        minder=minder,
        registrar=Registrar(settings.scheduler, world, store, reconciler, minder, clock),
        quota_desk=quota_desk,
        first_keypair=first_keypair,
    )


async def _load_world(world: World, store: ManagerStore, settings: Settings, clock: Clock) -> None:
    world.groups.update(await load_groups(store, settings.scheduler))
    world.allowances.limits.update({quota.scope: quota.limits for quota in await store.quotas()})
    now = clock()
    for used in await store.usage(now - LOOKBACK_S):
        world.usage_of(used.resource_group).add([used.charge])
    for record in await store.agents():
        world.nodes.restore(record, now)
    for ended in reversed(await store.recently_ended(REMEMBERED_ENDS)):
        world.run_times.learn(ended)
    for session in await store.live_sessions():
        world.replace(None, session)
    for agent_id in world.book.agents():
        world.nodes.meet(agent_id, now)
    for session in list(world.book.live.values()):
        if session.spec.depends_on:
            await note_dependencies(world.waiting, world.book, store, session.spec)

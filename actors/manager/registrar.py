"""Nodes introduce themselves, say that they are there, and leave."""

from __future__ import annotations

from backendai_ray.config import SchedulerSettings
from backendai_ray.core.errors import AgentNotFound, InvalidParameter
from backendai_ray.core.ids import AgentId
from backendai_ray.core.reports import NodeReport
from backendai_ray.store import Batch

from .bootstrap import founded
from .minding import Minder
from .nodes import Node
from .ports import Clock, ManagerStore
from .reconcile import Reconciler
from .world import World


class Registrar:
    """Keeps the nodes' entries; a node is used once its agent is ready and was compared with the records."""

    def __init__(
        self,
        settings: SchedulerSettings,
        world: World,
        store: ManagerStore,
        reconciler: Reconciler,
        minder: Minder,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._world = world
        self._store = store
        self._reconciler = reconciler
        self._minder = minder
        self._clock = clock

    async def take_report(
        self, announced: tuple[AgentId, str, int], report: NodeReport, handle: object, *, ready: bool
    ) -> None:
        """Take a report; one that is older than what is known changes nothing.

        Args:
            announced: Agent id, incarnation and version as the call said them.
            report: What the handle led to.
            handle: What the report travels in; passed on to policy actors.
            ready: Whether the agent has recovered what runs on its node.

        Raises:
            InvalidParameter: the report is not the one that is announced.
            StoreUnavailable: a new node or group could not be saved; the agent reports again.
        """
        if (report.agent_id, report.incarnation, report.version) != announced:
            raise InvalidParameter("report: it is not the one that is announced", field="report")
        node = self._world.nodes.meet(report.agent_id, self._clock())
        group_before = node.group
        if not node.take_report(report, handle, ready=ready):
            return
        if node.group != group_before:
            self._world.leave_group(node, group_before)
        node.seen(self._clock())
        self._world.ledger.equip(node.agent_id, report.devices.devices())
        node.capacity = self._world.ledger.capacity(node.agent_id)
        await self._found_group(node)
        await self._minder.save_nodes()
        self._reconciler.publish(node)
        if node.is_ready and (not node.is_reconciled or node.is_away or node.lost_at is not None):
            self._reconciler.reconcile_soon(node.agent_id)

    async def _found_group(self, node: Node) -> None:
        """A node that names a new resource group founds it."""
        if node.group not in self._world.groups:
            group = founded(node.group, self._settings)
            await self._store.commit(Batch(groups=(group,)))
            self._world.groups[group.name] = group

    def heartbeat(self, agent_id: AgentId, incarnation: str) -> None:
        """Note that an agent is there.

        Raises:
            AgentNotFound: no report of this incarnation is known (the Manager was restarted): send it again.
        """
        node = self._world.nodes.get(agent_id)
        if node is None or node.report is None or node.incarnation != incarnation:
            raise AgentNotFound(f"no report of {agent_id} is known; send one", agent_id=agent_id)
        was_there = not (node.is_away or node.has_left or node.lost_at is not None)
        node.seen(self._clock())
        if not was_there:
            self._reconciler.reconcile_soon(agent_id)

    def joined(self, agent_id: AgentId) -> None:
        """An agent was started on a node, or found there: ask it what it has."""
        node = self._world.nodes.meet(agent_id, self._clock())
        node.seen(self._clock())
        self._reconciler.publish(node)
        self._reconciler.reconcile_soon(agent_id)

    def gone(self, agent_id: AgentId) -> None:
        """A node has left the Ray cluster: nothing new goes there; what ran there is lost unless it comes back."""
        node = self._world.nodes.meet(agent_id, self._clock())
        node.has_left = True
        node.is_away = True
        self._reconciler.publish(node)

"""Who holds which devices, over all nodes: what a plan is checked against before it is committed.

A kernel holds its devices from the moment a plan that places it is accepted until its end is confirmed by the agent
(or the node is lost, and then nothing new goes there before it was looked at). The devices of one node are the
agent's and the policies' own :class:`~backendai_ray.core.allocator.DeviceMap`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.scheduling import KernelPlacement
from backendai_ray.core.slots import ResourceSlots, total


class Ledger:
    """Holdings by node and kernel."""

    def __init__(self) -> None:
        self._nodes: dict[AgentId, DeviceMap] = {}
        self._where: dict[KernelId, AgentId] = {}

    @property
    def held(self) -> Mapping[KernelId, tuple[AgentId, Allocation]]:
        """What every kernel holds, and where."""
        return {kernel_id: (agent, self._nodes[agent].held[kernel_id]) for kernel_id, agent in self._where.items()}

    def equip(self, agent_id: AgentId, devices: Sequence[Device]) -> None:
        """Say what a node has; what is held there stays held."""
        known = self._nodes.get(agent_id)
        self._nodes[agent_id] = DeviceMap(devices, known.held if known is not None else None)

    def hold_all(self, kernels: Sequence[KernelPlacement]) -> str:
        """Hold devices for all kernels or for none.

        Returns:
            Empty, or the sentence that says why not.
        """
        taken: list[KernelId] = []
        for kernel in kernels:
            node = self._nodes.get(kernel.agent_id)
            why = f"node {kernel.agent_id} is not known" if node is None else ""
            if kernel.kernel_id in self._where:
                why = f"kernel {kernel.kernel_id} holds devices already"
            if node is not None and not why:
                try:
                    node.hold(kernel.kernel_id, kernel.allocation)
                except Conflict as exc:
                    why = f"{kernel.agent_id}: {exc.message}"
            if why:
                for kernel_id in taken:
                    self.release(kernel_id)
                return why
            self._where[kernel.kernel_id] = kernel.agent_id
            taken.append(kernel.kernel_id)
        return ""

    def would_hold(self, kernels: Sequence[KernelPlacement], gone: Collection[KernelId]) -> str:
        """Say whether kernels could hold devices if others were gone; nothing is held by this.

        Returns:
            Empty, or the sentence that says why not.
        """
        trials: dict[AgentId, DeviceMap] = {}
        for kernel in kernels:
            trial = trials.get(kernel.agent_id)
            if trial is None:
                node = self._nodes.get(kernel.agent_id)
                if node is None:
                    return f"node {kernel.agent_id} is not known"
                trial = trials[kernel.agent_id] = node.copy()
                for kernel_id in gone:
                    trial.release(kernel_id)
            try:
                trial.hold(kernel.kernel_id, kernel.allocation)
            except Conflict as exc:
                return f"{kernel.agent_id}: {exc.message}"
        return ""

    def adopt(self, kernel_id: KernelId, agent_id: AgentId, allocation: Allocation) -> None:
        """Take over what a kernel holds as a fact, without a check."""
        if self._where.get(kernel_id) == agent_id and self._nodes[agent_id].held.get(kernel_id) == allocation:
            return  # held when the plan was accepted
        self.release(kernel_id)
        self._nodes.setdefault(agent_id, DeviceMap(())).adopt(kernel_id, allocation)
        self._where[kernel_id] = agent_id

    def release(self, kernel_id: KernelId) -> None:
        """Take a kernel's devices back; of one that holds nothing, nothing."""
        agent_id = self._where.pop(kernel_id, None)
        if agent_id is not None:
            self._nodes[agent_id].release(kernel_id)

    def capacity(self, agent_id: AgentId) -> ResourceSlots:
        """Return what a node has in all."""
        node = self._nodes.get(agent_id)
        return ResourceSlots() if node is None else node.capacity()

    def occupied(self, agent_id: AgentId) -> ResourceSlots:
        """Return what is held on a node in all."""
        node = self._nodes.get(agent_id)
        return ResourceSlots() if node is None else total(a.slots() for a in node.held.values())

    def could_hold(self, agent_id: AgentId, slots: ResourceSlots, count: int) -> bool:
        """Return whether the node, were it empty, has devices for ``count`` kernels of that size."""
        node = self._nodes.get(agent_id)
        if node is None:
            return False
        empty = node.emptied()
        for number in range(count):
            allocation = empty.allocate(slots)
            if not isinstance(allocation, Allocation):
                return False
            empty.hold(KernelId(str(number)), allocation)
        return True

    def overbooked(self) -> list[str]:
        """Return a sentence for every device of which more is held than there is."""
        sentences = []
        for agent_id, node in self._nodes.items():
            used: dict[tuple[str, str], int] = {}
            for allocation in node.held.values():
                for slot, device, units in allocation.parts:
                    used[slot, device] = used.get((slot, device), 0) + units
            for slot, layout in node.layout.slots.items():
                for device, capacity in zip(layout.ids, layout.capacity, strict=True):
                    if used.get((slot, device), 0) > capacity:
                        sentences.append(f"{agent_id}: {slot} {device}: {used[slot, device]} of {capacity} held")
        return sentences

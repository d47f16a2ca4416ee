"""The cluster of a simulation as it stands, and what of it is in use over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from types import MappingProxyType

from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.scheduling import Node, PendingSession, Placement, RunningKernel, Snapshot
from backendai_ray.core.slots import CPU, MEM
from backendai_ray.core.usage import UsageLedger, account_of, charges_for

_GROUP = ResourceGroupName("simulation")
_FAILED = "the node has failed"
_BY_SUBMISSION = attrgetter("submitted_at", "id")


def measured_slot(nodes: Iterable[Node]) -> str:
    """Return the slot whose use is measured: the accelerator of which there is most, without any the cores."""
    totals: dict[str, int] = {}
    for node in nodes:
        for device in node.devices:
            if device.slot not in (CPU, MEM):
                totals[device.slot] = totals.get(device.slot, 0) + device.capacity
    return max(sorted(totals), key=lambda slot: totals[slot], default=CPU)


class World:
    """Nodes, what waits and what runs. A node that did not change is the same object in the next snapshot."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Begin with these nodes, whatever is held on them."""
        self._nodes = {node.agent_id: node for node in sorted(nodes, key=lambda node: node.agent_id)}
        self._held: dict[AgentId, dict[KernelId, Allocation]] = {}
        self._stale: set[AgentId] = set()
        self.pending: dict[SessionId, PendingSession] = {}
        self._running: dict[KernelId, RunningKernel] = {}
        self._kernels: dict[SessionId, tuple[KernelId, ...]] = {}
        self.usage = Usage(nodes)
        self._ledger = UsageLedger()

    def snapshot(self, now: float) -> Snapshot:
        """Return the world as a policy sees it."""
        for agent_id in self._stale:
            held = MappingProxyType(dict(self._held.get(agent_id, {})))
            self._nodes[agent_id] = replace(self._nodes[agent_id], held=held)
        self._stale.clear()
        return Snapshot(
            now=now,
            resource_group=_GROUP,
            pending=tuple(self.pending.values()),
            running=tuple(self._running.values()),
            nodes=tuple(self._nodes.values()),
            usage=self._ledger.view(),
        )

    def start(self, placement: Placement, now: float) -> None:
        """Start a session that waits."""
        session = replace(self.pending.pop(placement.session_id), nominated=())
        self._kernels[session.id] = tuple(kernel.kernel_id for kernel in placement.kernels)
        for kernel in placement.kernels:
            self._running[kernel.kernel_id] = RunningKernel(
                kernel_id=kernel.kernel_id,
                session_id=session.id,
                agent_id=kernel.agent_id,
                access_key=session.access_key,
                project=session.project,
                domain=session.domain,
                user=session.user,
                allocation=kernel.allocation,
                priority=session.priority,
                placed_at=now,
                time_limit_s=session.time_limit_s,
                restarts_as=session,
            )
            self._held.setdefault(kernel.agent_id, {})[kernel.kernel_id] = kernel.allocation
            self._stale.add(kernel.agent_id)
            self.usage.change(kernel.agent_id, kernel.allocation, 1, now)

    def restarts_as(self, session_id: SessionId, *, is_failure: bool = False) -> PendingSession:
        """Return what a session that runs waits as when it has to run again; being preempted is counted."""
        session = self._running[self._kernels[session_id][0]].restarts_as
        assert session is not None
        return replace(session, preemptions=session.preemptions + (not is_failure))

    def mark_ending(self, session_id: SessionId, beneficiary: SessionId) -> None:
        """Let a session be on its way out for another one; it holds what it has until it is ended."""
        for kernel_id in self._kernels[session_id]:
            self._running[kernel_id] = replace(self._running[kernel_id], ending=True, ending_for=beneficiary)

    def nominate(self, placement: Placement) -> None:
        """Remember the place that is being made for a session; of one that runs, for when it waits."""
        waiting = self.pending.get(placement.session_id)
        if waiting is not None:
            self.pending[waiting.id] = replace(waiting, nominated=placement.kernels)
            return
        for kernel_id in self._kernels.get(placement.session_id, ()):
            kernel = self._running[kernel_id]
            if kernel.restarts_as is not None:
                waits = replace(kernel.restarts_as, nominated=placement.kernels)
                self._running[kernel_id] = replace(kernel, restarts_as=waits)

    def requeue(self, session: PendingSession) -> None:
        """Let a session that ran wait again, where it was in the queue."""
        self.pending[session.id] = session
        self.pending = {one.id: one for one in sorted(self.pending.values(), key=_BY_SUBMISSION)}

    def set_out(self, agent_id: AgentId, is_out: bool, now: float) -> list[SessionId]:
        """Let a node fail or come back; return the sessions that run there and must be ended."""
        self._nodes[agent_id] = replace(self._nodes[agent_id], unschedulable=_FAILED if is_out else "")
        self.usage.set_out(agent_id, is_out, now)
        return list(dict.fromkeys(self._running[kernel_id].session_id for kernel_id in self._held.get(agent_id, ())))

    def end(self, session_id: SessionId, now: float) -> None:
        """End a session that runs."""
        for kernel_id in self._kernels.pop(session_id):
            kernel = self._running.pop(kernel_id)
            del self._held[kernel.agent_id][kernel_id]
            self._stale.add(kernel.agent_id)
            self.usage.change(kernel.agent_id, kernel.allocation, -1, now)
            slots = kernel.allocation.slots()
            self._ledger.add(charges_for(account_of(kernel), slots, kernel.placed_at, now))


class Usage:
    """How much of one slot was in use and free in pieces, now and summed over time; and how much is out."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Begin with nodes on which nothing runs."""
        self.slot = measured_slot(nodes)
        self._capacity = {
            node.agent_id: sum(device.capacity for device in node.devices if device.slot == self.slot) for node in nodes
        }
        self.capacity = sum(self._capacity.values())
        self._used = dict.fromkeys(self._capacity, 0)
        self._is_out: set[AgentId] = set()
        self.busy = self.pieces = self.out = 0
        """Units at present."""
        self._since = 0.0
        self.busy_s = self.pieces_s = 0.0
        """Units times seconds."""

    def change(self, agent_id: AgentId, allocation: Allocation, sign: int, now: float) -> None:
        """Take note that a kernel starts (1) or ends (-1)."""
        units = sum(part for slot, _, part in allocation.parts if slot == self.slot)
        self.advance(now)
        self.pieces -= self._in_pieces(agent_id)
        self._used[agent_id] += sign * units
        self.busy += sign * units
        self.pieces += self._in_pieces(agent_id)

    def set_out(self, agent_id: AgentId, is_out: bool, now: float) -> None:
        """Take note that a node fails or comes back; what is free there then is out, not in pieces."""
        self.advance(now)
        self.pieces -= self._in_pieces(agent_id)
        self.out += self._capacity[agent_id] * (is_out - (agent_id in self._is_out))
        (self._is_out.add if is_out else self._is_out.discard)(agent_id)
        self.pieces += self._in_pieces(agent_id)

    def advance(self, now: float) -> None:
        """Sum up until now, seconds; time before the first change does not count."""
        passed = now - self._since
        self.busy_s += self.busy * passed
        self.pieces_s += self.pieces * passed
        self._since = now

    def _in_pieces(self, agent_id: AgentId) -> int:
        """Return what is free on a node that is not empty: no session that needs a whole node can have it."""
        used = self._used[agent_id]
        return self._capacity[agent_id] - used if used and agent_id not in self._is_out else 0

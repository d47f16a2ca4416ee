"""The mirror, fed with changes in any order, equals the world made anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.ids import AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.reports import DeviceTable, NodeReport
from backendai_ray.core.scheduling import (
    Change,
    Changes,
    KernelFreed,
    KernelHeld,
    Node,
    NodeChanged,
    NodeGone,
    PendingSession,
    RunningKernel,
    SessionQueued,
    SessionUnqueued,
    Snapshot,
)
from policies.columns import RoomCache
from policies.mirror import NO_REPORT, Mirror
from policies.testing import make_node, make_session, run_kernel

GROUP = ResourceGroupName("default")


def report_of(node: Node, version: int = 1, health: str = "") -> NodeReport:
    return NodeReport(
        agent_id=node.agent_id,
        incarnation="i",
        version=version,
        resource_group=GROUP,
        architecture=node.architecture,
        backend="sim",
        devices=DeviceTable.of(node.devices),
        images=("python",),
        health=health,
    )


def changes_of(*changes: Change, upto: int, full: bool = False, incarnation: str = "m1") -> Changes:
    return Changes(resource_group=GROUP, incarnation=incarnation, upto=upto, full=full, changes=changes)


def take(mirror: Mirror, changes: Changes) -> None:
    reports = {c.agent_id: c.report for c in changes.changes if isinstance(c, NodeChanged) and c.report is not None}
    mirror.take(changes, reports)  # type: ignore[arg-type]


NODES = [make_node(f"n{i}", cpu=2 + i, gpus=i) for i in range(3)]


class Feeding(RuleBasedStateMachine):
    """A model of the Manager's world, a mirror that gets each change, and a policy's warm columns on the mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror(GROUP)
        self.rooms = RoomCache()
        self.number = 0
        self.pending: dict[SessionId, PendingSession] = {}
        self.running: dict[KernelId, RunningKernel] = {}
        self.nodes: dict[AgentId, Node] = {}
        take(self.mirror, changes_of(upto=0, full=True))

    def _tell(self, *changes: Change) -> None:
        self.number += len(changes)
        take(self.mirror, changes_of(*changes, upto=self.number))

    @rule(index=st.integers(0, 9), at=st.integers(0, 5), version=st.integers(0, 3))
    def queue(self, index: int, at: int, version: int) -> None:
        session = make_session(f"s{index}", submitted_at=float(at), version=version)
        self.pending[session.id] = session
        self._tell(SessionQueued(session))

    @rule(index=st.integers(0, 9))
    def unqueue(self, index: int) -> None:
        self.pending.pop(SessionId(f"s{index}"), None)
        self._tell(SessionUnqueued(SessionId(f"s{index}")))

    @rule(index=st.integers(0, 2), why=st.sampled_from(["", "drained"]), health=st.sampled_from(["", "no disk"]))
    def node_changes(self, index: int, why: str, health: str) -> None:
        node = replace(NODES[index], unschedulable=why or health, images=frozenset({"python"}))
        self.nodes[node.agent_id] = node
        self._tell(NodeChanged(node.agent_id, why, report_of(node, health=health)))

    @rule(index=st.integers(0, 2))
    def node_goes(self, index: int) -> None:
        self.nodes.pop(NODES[index].agent_id, None)
        self._tell(NodeGone(NODES[index].agent_id))

    @rule(node=st.integers(0, 2), kernel=st.integers(0, 2), cpu=st.integers(1, 2))
    def hold(self, node: int, kernel: int, cpu: int) -> None:
        one = run_kernel(NODES[node], f"k{kernel}", cpu=cpu, mem="1g")
        self.running.pop(one.kernel_id, None)
        self.running[one.kernel_id] = one
        self._tell(KernelHeld(one))

    @rule(kernel=st.integers(0, 2))
    def free(self, kernel: int) -> None:
        self.running.pop(KernelId(f"k{kernel}"), None)
        self._tell(KernelFreed(KernelId(f"k{kernel}")))

    @precondition(lambda self: self.number)
    @rule(behind=st.integers(1, 3))
    def repeat(self, behind: int) -> None:
        """An answer that came twice: what it says was taken in before."""
        said = tuple(SessionUnqueued(session_id) for session_id in list(self.pending)[:behind])
        take(self.mirror, changes_of(*said, upto=self.number))

    @rule()
    def start_over(self) -> None:
        self.number += 10
        take(self.mirror, changes_of(*self._everything(), upto=self.number, full=True, incarnation="m1"))

    def _everything(self) -> list[Change]:
        held = [KernelHeld(kernel) for kernel in self.running.values()]
        nodes = [NodeChanged(n.agent_id, n.unschedulable, report_of(n)) for n in self.nodes.values()]
        return [*held, *nodes, *(SessionQueued(session) for session in self.pending.values())]

    @invariant()
    def it_equals_the_world(self) -> None:
        snapshot = self.mirror.snapshot(1.0)
        expected = sorted(self.pending.values(), key=lambda s: (s.submitted_at, s.id))
        assert list(snapshot.pending) == expected
        assert {kernel.kernel_id: kernel for kernel in snapshot.running} == self.running
        assert [node.agent_id for node in snapshot.nodes] == sorted(self.nodes)
        for node in snapshot.nodes:
            held = {k.kernel_id: k.allocation for k in self.running.values() if k.agent_id == node.agent_id}
            assert replace(node, held={}) == self.nodes[node.agent_id]
            assert dict(node.held) == held
        self._columns_equal_a_fresh_start(snapshot)

    def _columns_equal_a_fresh_start(self, snapshot: Snapshot) -> None:
        warm, fresh = self.rooms.open(snapshot.nodes), RoomCache().open(snapshot.nodes)
        for slot in fresh.columns.slots:
            for one, other in (
                (warm.columns.free, fresh.columns.free),
                (warm.columns.capacity, fresh.columns.capacity),
            ):
                column, column_too = warm.columns.column(slot), fresh.columns.column(slot)
                assert (one[:, column] == other[:, column_too]).all()
        for row, node in enumerate(snapshot.nodes):
            assert warm.map(row) == DeviceMap(node.devices, node.held)


TestFeeding = Feeding.TestCase


def test_a_gap_does_not_join() -> None:
    mirror = Mirror(GROUP)
    assert not mirror.joins(changes_of(upto=0)), "nothing is known yet"
    take(mirror, changes_of(upto=5, full=True))
    one = SessionUnqueued(SessionId("s"))
    assert mirror.joins(changes_of(upto=5))
    assert mirror.joins(changes_of(one, upto=6))
    assert mirror.joins(changes_of(one, one, upto=6)), "overlaps"
    assert not mirror.joins(changes_of(one, upto=7))
    assert not mirror.joins(changes_of(one, upto=6, incarnation="m2"))
    with pytest.raises(ValueError, match="do not follow"):
        take(mirror, changes_of(one, upto=7))


def test_a_lost_report_makes_the_node_unschedulable_until_the_next_one() -> None:
    mirror = Mirror(GROUP)
    node = NODES[1]
    take(mirror, changes_of(NodeChanged(node.agent_id, "", report_of(node)), upto=1, full=True))
    take(mirror, changes_of(NodeChanged(node.agent_id, "", None), upto=2))
    (lost,) = mirror.snapshot(1.0).nodes
    assert lost.unschedulable == NO_REPORT
    assert lost.devices == node.devices
    take(mirror, changes_of(NodeChanged(node.agent_id, "", report_of(node, 2)), upto=3))
    assert mirror.snapshot(1.0).nodes[0].unschedulable == ""


def test_an_unchanged_node_is_the_same_object_in_the_next_snapshot() -> None:
    mirror = Mirror(GROUP)
    changes = [NodeChanged(node.agent_id, "", report_of(node)) for node in NODES]
    take(mirror, changes_of(*changes, upto=3, full=True))
    before = mirror.snapshot(1.0)
    take(mirror, changes_of(KernelHeld(run_kernel(NODES[0], "k", cpu=1)), upto=4))
    after = mirror.snapshot(2.0)
    assert [a is b for a, b in zip(before.nodes, after.nodes, strict=True)] == [False, True, True]
    assert not before.nodes[0].held
    assert set(after.nodes[0].held) == {"k"}


def test_the_next_start_time_is_known() -> None:
    mirror = Mirror(GROUP)
    sessions = [make_session("a", starts_at=50.0), make_session("b", starts_at=40.0), make_session("c")]
    take(mirror, changes_of(*(SessionQueued(s) for s in sessions), upto=3, full=True))
    assert mirror.next_start(10.0) == 40.0
    assert mirror.next_start(45.0) == 50.0
    assert mirror.next_start(50.0) is None

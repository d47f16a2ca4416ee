"""Worlds for tests of policies: builders by hand, and a generator of them for Hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import strategies as st

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.scheduling import Node, PendingSession, Plan, RunningKernel, Snapshot
from backendai_ray.core.sessions import ClusterMode, SessionType
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, SlotName
from backendai_ray.core.usage import Account, Bucket, Usage

GPU = SlotName("cuda.device")
SHARES = SlotName("cuda.shares")
GIB = 2**30
NOW = 1_000_000.0


def make_node(
    agent_id: str,
    *,
    cpu: int = 4,
    mem_gib: int = 16,
    gpus: int = 0,
    shares: int = 0,
    architecture: str = "x86_64",
    unschedulable: str = "",
) -> Node:
    """Return an empty node."""
    devices = [Device(CPU, DeviceId(str(i)), 1000, 0) for i in range(cpu)]
    devices.append(Device(MEM, DeviceId("0"), mem_gib * GIB, 0))
    devices += [Device(GPU, DeviceId(f"gpu{i}"), 1000, 0) for i in range(gpus)]
    devices += [Device(SHARES, DeviceId(f"gpu{i}"), 1000, 0) for i in range(shares)]
    return Node(
        agent_id=AgentId(agent_id), architecture=architecture, devices=tuple(devices), unschedulable=unschedulable
    )


def make_session(
    name: str,
    *,
    size: int = 1,
    mode: ClusterMode = ClusterMode.SINGLE_NODE,
    submitted_at: float = 0.0,
    version: int = 1,
    architecture: str = "",
    designated: tuple[str, ...] = (),
    avoid: tuple[str, ...] = (),
    starts_at: float | None = None,
    waiting_for: tuple[str, ...] = (),
    access_key: str = "AK",
    priority: int = 10,
    time_limit_s: float | None = None,
    **amounts: str | int,
) -> PendingSession:
    """Return a session that waits; amounts as people write them, ``_`` for ``.`` (``cuda_device=1``)."""
    slots = {slot.replace("_", "."): amount for slot, amount in (amounts or {"cpu": 1, "mem": "1g"}).items()}
    return PendingSession(
        id=SessionId(name),
        version=version,
        access_key=AccessKey(access_key),
        domain="default",
        project="default",
        user="user",
        type=SessionType.BATCH,
        priority=priority,
        submitted_at=submitted_at,
        image="python",
        architecture=architecture,
        slots=ResourceSlots.parse(slots),
        kernel_ids=tuple(KernelId(f"{name}-{i}") for i in range(size)),
        cluster_mode=mode,
        designated_agents=tuple(AgentId(agent) for agent in designated),
        starts_at=starts_at,
        waiting_for=tuple(SessionId(other) for other in waiting_for),
        avoid_agents=tuple(AgentId(agent) for agent in avoid),
        time_limit_s=time_limit_s,
    )


def make_snapshot(
    nodes: list[Node], pending: list[PendingSession], running: list[RunningKernel] | None = None, *, now: float = NOW
) -> Snapshot:
    """Return a world; what runs is held on its nodes."""
    held: dict[AgentId, dict[KernelId, Allocation]] = {}
    for kernel in running or []:
        held.setdefault(kernel.agent_id, {})[kernel.kernel_id] = kernel.allocation
    return Snapshot(
        now=now,
        resource_group=ResourceGroupName("default"),
        pending=tuple(pending),
        running=tuple(running or ()),
        nodes=tuple(
            Node(
                agent_id=node.agent_id,
                architecture=node.architecture,
                devices=node.devices,
                held=held.get(node.agent_id, {}),
                unschedulable=node.unschedulable,
            )
            for node in sorted(nodes, key=lambda node: node.agent_id)
        ),
    )


def run_kernel(node: Node, name: str, **amounts: str | int) -> RunningKernel:
    """Return a kernel that runs on an otherwise empty node."""
    return run_kernels(node, {name: amounts})[0]


def run_kernels(node: Node, kernels: Mapping[str, Mapping[str, str | int]]) -> list[RunningKernel]:
    """Return kernels that run on a node, placed one after the other; amounts by kernel."""
    room = DeviceMap(node.devices)
    running: list[RunningKernel] = []
    for name, amounts in kernels.items():
        found = room.allocate(ResourceSlots.parse({slot.replace("_", "."): units for slot, units in amounts.items()}))
        assert isinstance(found, Allocation), f"{found} on {node.agent_id}"
        room.hold(KernelId(name), found)
        running.append(_running(name, node.agent_id, found))
    return running


def _running(
    name: str, agent_id: AgentId, allocation: Allocation, access_key: str = "AK", session_id: str = ""
) -> RunningKernel:
    return RunningKernel(
        kernel_id=KernelId(name),
        session_id=SessionId(session_id or f"session-{name}"),
        agent_id=agent_id,
        access_key=AccessKey(access_key),
        project="default",
        domain="default",
        allocation=allocation,
        priority=10,
        placed_at=0.0,
    )


@st.composite
def snapshots(draw: st.DrawFn, *, max_nodes: int = 4, max_pending: int = 8) -> Snapshot:
    """Generate worlds: nodes of several kinds, some of what they have held, and a queue with everything in it."""
    nodes = [draw(_nodes(index)) for index in range(draw(st.integers(0, max_nodes)))]
    running: list[RunningKernel] = []
    for node in nodes:
        room = DeviceMap(node.devices)
        for number, slots in enumerate(draw(st.lists(_requests, max_size=3))):
            found = room.allocate(slots)
            if isinstance(found, Allocation):
                owner = draw(_owners)
                kernel = _running(f"run-{node.agent_id}-{number}", node.agent_id, found, owner)
                running.append(replace(kernel, placed_at=NOW - 30, time_limit_s=draw(_limits)))
                room.hold(running[-1].kernel_id, found)
    pending = [draw(_sessions(index)) for index in range(draw(st.integers(0, max_pending)))]
    running = [replace(k, user=_USERS[k.access_key], project=_PROJECTS[k.access_key]) for k in running]
    return replace(make_snapshot(nodes, pending, running), usage=draw(_usages))


@st.composite
def _nodes(draw: st.DrawFn, index: int) -> Node:
    kind = draw(st.sampled_from(["plain", "plain", "gpu", "shares"]))
    return make_node(
        f"n{index}",
        cpu=draw(st.integers(1, 6)),
        mem_gib=draw(st.integers(1, 8)),
        gpus=draw(st.integers(1, 4)) if kind == "gpu" else 0,
        shares=draw(st.integers(1, 3)) if kind == "shares" else 0,
        architecture=draw(st.sampled_from(["x86_64", "x86_64", "x86_64", "aarch64"])),
        unschedulable=draw(st.sampled_from(["", "", "", "", "is being drained"])),
    )


_amounts = st.fixed_dictionaries(
    {CPU: st.sampled_from(["0.5", 1, 2, 4, 7]), MEM: st.sampled_from(["256m", "1g", "3g"])},
    optional={GPU: st.integers(1, 3), SHARES: st.sampled_from(["0.3", "0.6", 1, "1.5"])},
)
_requests = _amounts.map(lambda amounts: ResourceSlots.parse({str(k): v for k, v in amounts.items()}))
_owners = st.sampled_from(["AK", "AK", "BK", "CK"])
_limits = st.sampled_from([None, 10.0, 60.0, 600.0])
_USERS: Mapping[str, str] = {"AK": "a", "BK": "b", "CK": "c"}
_PROJECTS: Mapping[str, str] = {"AK": "default", "BK": "default", "CK": "other"}
_usages: st.SearchStrategy[Mapping[Account, Usage]] = st.dictionaries(
    st.sampled_from([("default", "default", "a"), ("default", "other", "c")]),
    st.sampled_from([1e6, 1e8]).map(lambda amount: (Bucket(NOW - 7200, 3600, {CPU: amount}),)),
)
_agents = st.lists(st.sampled_from(["n0", "n1", "n2", "gone"]), max_size=2, unique=True).map(tuple)


@st.composite
def _sessions(draw: st.DrawFn, index: int) -> PendingSession:
    rarely = st.sampled_from([False, False, False, False, True])
    session = make_session(
        f"s{index}",
        size=draw(st.sampled_from([1, 1, 1, 2, 3])),
        mode=draw(st.sampled_from(list(ClusterMode))),
        submitted_at=float(index),
        version=draw(st.integers(0, 3)),
        architecture=draw(st.sampled_from(["", "x86_64", "x86_64", "aarch64"])),
        designated=draw(_agents) if draw(rarely) else (),
        avoid=draw(_agents) if draw(rarely) else (),
        starts_at=draw(st.sampled_from([NOW - 1, NOW + 60])) if draw(rarely) else None,
        waiting_for=("other",) if draw(rarely) else (),
        access_key=draw(_owners),
        priority=draw(st.sampled_from([10, 10, 10, 0, 50])),
        time_limit_s=draw(_limits),
    )
    user, project = _USERS[session.access_key], _PROJECTS[session.access_key]
    return replace(session, slots=draw(_requests), user=user, project=project)


def carried_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """Return the world after a plan's placements."""
    started = {placement.session_id for placement in plan.placements}
    owner = {session.id: session for session in snapshot.pending}
    running = list(snapshot.running)
    running += [
        replace(
            _running(kernel.kernel_id, kernel.agent_id, kernel.allocation, session_id=placement.session_id),
            access_key=owner[placement.session_id].access_key,
            project=owner[placement.session_id].project,
            user=owner[placement.session_id].user,
            placed_at=snapshot.now,
        )
        for placement in plan.placements
        for kernel in placement.kernels
    ]
    waiting = [session for session in snapshot.pending if session.id not in started]
    after = make_snapshot(list(snapshot.nodes), waiting, running, now=snapshot.now)
    return replace(after, quotas=snapshot.quotas, usage=snapshot.usage)

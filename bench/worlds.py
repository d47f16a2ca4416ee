"""Resource groups of thousands of nodes and the requests that wait for them, made up from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from backendai_ray.core.devices import Device
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, SessionId
from backendai_ray.core.scheduling import Node, PendingSession
from backendai_ray.core.sessions import ClusterMode, SessionType
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots, SlotName

GPU = SlotName("cuda.device")
GIB = 2**30
CORES, MEMORY_GIB, GPUS = 64, 512, 8
"""Of each node, on two NUMA nodes."""
OWNERS = 50
ARCHITECTURE = "x86_64"


def devices() -> tuple[Device, ...]:
    """Return what each node has."""
    return (
        *(Device(CPU, DeviceId(str(i)), UNITS_PER_COUNT, i * 2 // CORES) for i in range(CORES)),
        *(Device(MEM, DeviceId(str(i)), MEMORY_GIB // 2 * GIB, i) for i in range(2)),
        *(Device(GPU, DeviceId(f"GPU-{i}"), UNITS_PER_COUNT, i * 2 // GPUS) for i in range(GPUS)),
    )


def nodes(count: int) -> list[Node]:
    """Return empty nodes."""
    have = devices()
    return [Node(agent_id=AgentId(f"node-{i:05}"), architecture=ARCHITECTURE, devices=have) for i in range(count)]


def a_whole_node() -> ResourceSlots:
    """Return a request for all GPUs and cores of a node."""
    return ResourceSlots([(CPU, CORES * UNITS_PER_COUNT), (MEM, GIB), (GPU, GPUS * UNITS_PER_COUNT)])


def requests(seed: int) -> Iterator[ResourceSlots]:
    """Return what sessions ask for, without end: up to 8 cores, 32 GiB and 2 GPUs, as in the original's own tests."""
    random = Random(seed)
    while True:
        yield ResourceSlots(
            [
                (CPU, random.choice((1, 2, 4, 8)) * UNITS_PER_COUNT),
                (MEM, random.choice((2, 4, 16, 32)) * GIB),
                (GPU, random.choice((0, 0, 1, 1, 2)) * UNITS_PER_COUNT),
            ]
        )


def waiting(count: int, seed: int, *, time_limit_s: float | None = None) -> list[PendingSession]:
    """Return sessions that wait, of many owners; with a time limit, of up to that length."""
    random = Random(seed)
    return [
        PendingSession(
            id=SessionId(f"{seed:04}-{number:06}"),
            version=1,
            access_key=AccessKey(f"AKIA{random.randrange(OWNERS):016}"),
            domain="default",
            project="default",
            user="user",
            type=SessionType.BATCH,
            priority=10,
            submitted_at=float(number),
            image="python",
            architecture=ARCHITECTURE,
            slots=slots,
            kernel_ids=(KernelId(f"{seed:04}-{number:06}-0"),),
            cluster_mode=ClusterMode.SINGLE_NODE,
            time_limit_s=None if time_limit_s is None else random.uniform(0.1, 1.0) * time_limit_s,
        )
        for number, slots in zip(range(count), requests(seed), strict=False)
    ]


def asking_for(session: PendingSession, slots: ResourceSlots) -> PendingSession:
    """Return a session that asks for something else."""
    return replace(session, slots=slots)

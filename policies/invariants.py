"""What must hold of the worlds that plans lead to, checked without the code that made the plans where that can be.

Each function returns what is wrong, a sentence each; nothing is wrong when it returns nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from backendai_ray.core.ids import DeviceId, SessionId
from backendai_ray.core.scheduling import Placement, Plan, RefusalCode, Snapshot
from backendai_ray.core.slots import SlotName

from .candidates import Candidates
from .columns import RoomCache
from .placing import place
from .selection import Concentrated

_TIME_WILL_TELL = frozenset({RefusalCode.NOT_YET, RefusalCode.DEPENDENCIES, RefusalCode.QUOTA})


def over_allocated(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the devices of which more is held than there is; counted by hand, not by the allocator."""
    return tuple(_over_allocated(snapshot))


def _over_allocated(snapshot: Snapshot) -> Iterator[str]:
    for node in snapshot.nodes:
        held: Counter[tuple[SlotName, DeviceId]] = Counter()
        for allocation in node.held.values():
            for slot, device_id, units in allocation.parts:
                held[slot, device_id] += units
        capacity = {(device.slot, device.id): device.capacity for device in node.devices}
        for key, units in held.items():
            if units > capacity.get(key, 0):
                yield f"node {node.agent_id}: {units} units of {key[0]} {key[1]} are held of {capacity.get(key, 0)}"


def split_gangs(before: Snapshot, after: Snapshot) -> tuple[SessionId, ...]:
    """Return the sessions that waited before and run only in part after."""
    runs = {kernel.kernel_id for kernel in after.running}
    gangs = {session.id: set(session.kernel_ids) for session in before.pending}
    return tuple(name for name, kernels in gangs.items() if kernels & runs and not kernels <= runs)


def room_left_idle(after: Snapshot, plan: Plan, *, strict: bool) -> tuple[str, ...]:
    """Return the refusals for want of room of sessions for which there is room when the plan has been carried out.

    Args:
        after: The world after the plan.
        plan: What was decided.
        strict: Whether the policy may hold sessions back behind one that waits for room.
    """
    waiting = {session.id: session for session in after.pending}
    wrong: list[str] = []
    for refusal in plan.refusals:
        if refusal.code in _TIME_WILL_TELL or (strict and refusal.code is RefusalCode.BEHIND_HEAD):
            continue
        session, room = waiting[refusal.session_id], RoomCache().open(after.nodes)
        if isinstance(place(room, Candidates(room, session, Concentrated()), session), Placement):
            wrong.append(f"session {session.id} was refused ({refusal.code}), and there is room for it")
    return tuple(wrong)

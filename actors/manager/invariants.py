"""What must always hold of the Manager's memory, as code: run by tests after every move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.quotas import scopes_of
from backendai_ray.core.scheduling import KernelFreed, KernelHeld, SessionQueued, SessionUnqueued
from backendai_ray.core.sessions import Status

from .views import holds_devices
from .world import World


def broken(world: World) -> list[str]:
    """Return a sentence for everything that does not hold; empty when all is well."""
    return [
        *_ledger(world),
        *_allowances(world),
        *_queue(world),
        *_book(world),
        *world.ledger.overbooked(),
    ]


def _ledger(world: World) -> Iterator[str]:
    wanted = {
        kernel.id: (kernel.agent_id, kernel.allocation)
        for session in world.book.live.values()
        for kernel in session.kernels
        if holds_devices(kernel)
    }
    held = dict(world.ledger.held)
    for kernel_id in wanted.keys() | held.keys():
        if wanted.get(kernel_id) != held.get(kernel_id):
            yield f"kernel {kernel_id}: the record says {wanted.get(kernel_id)}, the ledger {held.get(kernel_id)}"


def _allowances(world: World) -> Iterator[str]:
    live = world.book.live.values()
    holding = {kernel.id for session in live for kernel in session.kernels if holds_devices(kernel)}
    if world.allowances.held() != holding:
        yield f"quotas count the kernels {world.allowances.held()}, but {holding} hold devices"
    waiting = Counter(scope for s in live if s.status is Status.PENDING for scope in scopes_of(s.spec))
    for scope, count in waiting.items():
        if world.allowances.waiting(scope) != count:
            yield f"quotas count {world.allowances.waiting(scope)} waiting sessions of {scope}, but {count} wait"


def _queue(world: World) -> Iterator[str]:
    """Whoever follows the changes from the first one on must believe what the records say."""
    for group in world.groups:
        queued, held, is_complete = _believed(world, group)
        if not is_complete:
            continue
        sessions = [s for s in world.book.live.values() if s.spec.resource_group == group]
        pending = {s.id: s.version for s in sessions if s.status is Status.PENDING}
        if queued != pending:
            yield f"{group}: the scheduler believes that {queued} wait, but {pending} do"
        holding = {k.id for s in sessions for k in s.kernels if holds_devices(k)}
        if held != holding:
            yield f"{group}: the scheduler believes that {held} hold devices, but {holding} do"


def _believed(world: World, group: ResourceGroupName) -> tuple[dict[SessionId, int], set[str], bool]:
    changes = world.log(group).since(world.incarnation, 0)
    queued: dict[SessionId, int] = {}
    held: set[str] = set()
    for change in changes.changes if changes is not None else ():
        match change:
            case SessionQueued(session):
                queued[session.id] = session.version
            case SessionUnqueued(session_id):
                del queued[session_id]
            case KernelHeld(kernel):
                held.add(kernel.kernel_id)
            case KernelFreed(kernel_id):
                held.remove(kernel_id)
            case _:
                pass
    return queued, held, changes is not None


def _book(world: World) -> Iterator[str]:
    for session in world.book.live.values():
        if session.is_terminal:
            yield f"session {session.id} is {session.status} and still in the book"
        if world.book.named(session.spec.access_key, session.spec.name) != session.id:
            yield f"session {session.id} is not found by its name"
        for kernel in session.kernels:
            if world.book.of_kernel(kernel.id) is not session:
                yield f"session {session.id} is not found by its kernel {kernel.id}"

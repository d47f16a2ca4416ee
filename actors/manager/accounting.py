"""What sessions are charged for: what their kernels held, from the placement until the devices were given back."""

from __future__ import annotations

from collections.abc import Iterator

from backendai_ray.core.sessions import Kernel, Session
from backendai_ray.core.usage import Charge, account_of, charges_for

from .views import holds_devices, placed_at


def charges_of(before: Session | None, after: Session) -> Iterator[Charge]:
    """Return what is charged when one record of a session takes the place of another.

    It follows from the records alone: what is committed with the new record is what memory counts, whoever asks.
    """
    for old, new in freed_kernels(before, after):
        if before is not None:
            until = freed_at(after, new)
            yield from charges_for(account_of(after.spec), old.allocation.slots(), placed_at(before, old), until)


def freed_kernels(before: Session | None, after: Session) -> Iterator[tuple[Kernel, Kernel]]:
    """Return the kernels that have given their devices back, as they were and as they are."""
    new = {kernel.id: kernel for kernel in after.kernels}
    for old in before.kernels if before is not None else ():
        if holds_devices(old) and not holds_devices(new[old.id]):
            yield old, new[old.id]


def freed_at(session: Session, kernel: Kernel) -> float:
    """Return when a kernel gave its devices back: at its end, or when its session went back into the queue."""
    return session.status_at if kernel.terminated_at is None else kernel.terminated_at

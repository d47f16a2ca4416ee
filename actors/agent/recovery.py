"""What an agent does with what it finds when it comes back: decided here, as a pure function, and carried out there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.agent.backends.base import Found, Life
from actors.agent.journal import KernelRecord
from backendai_ray.core.ids import KernelId
from backendai_ray.core.sessions import Status


@dataclass(frozen=True, slots=True)
class Plan:
    """Every record is in exactly one of the first three; every life found in exactly one place."""

    ended: tuple[KernelId, ...] = ()
    """Had ended before; only to be told again."""
    to_make: tuple[KernelId, ...] = ()
    """Were on their way and do not run: begin again, which makes nothing twice."""
    to_adopt: dict[KernelId, Found] = field(default_factory=dict)
    """Run, or had been running: go on with them, or find out how they ended."""
    leftovers: tuple[Found, ...] = ()
    """Lives that a record has moved on from: remove them."""
    strays: dict[KernelId, list[Found]] = field(default_factory=dict)
    """Lives without any record: the Manager decides."""


def plan_recovery(records: Sequence[KernelRecord], found: Sequence[Found]) -> Plan:
    """Match what was recorded with what is there."""
    by_life = {one.life: one for one in found}
    by_kernel = {record.spec.kernel_id: record for record in records}
    ended, to_make, to_adopt = [], [], {}
    for record in records:
        kernel_id = record.spec.kernel_id
        if record.has_ended:
            ended.append(kernel_id)
        elif record.status is Status.RUNNING or record.stop is not None or _runs(by_life.get(record.life)):
            to_adopt[kernel_id] = by_life.get(record.life) or _gone(record.life)
        else:
            to_make.append(kernel_id)
    leftovers, strays = unexplained(by_kernel, found)
    return Plan(tuple(ended), tuple(to_make), to_adopt, tuple(leftovers), strays)


def unexplained(
    records: Mapping[KernelId, KernelRecord], found: Iterable[Found]
) -> tuple[list[Found], dict[KernelId, list[Found]]]:
    """Return the lives that a record has moved on from, and those without any record."""
    leftovers: list[Found] = []
    strays: dict[KernelId, list[Found]] = {}
    for one in found:
        owner = records.get(one.life.kernel_id)
        if owner is None:
            strays.setdefault(one.life.kernel_id, []).append(one)
        elif owner.life != one.life or owner.has_ended:
            leftovers.append(one)
    return leftovers, strays


def _runs(found: Found | None) -> bool:
    """A record may be a little behind: that a kernel runs is written down last.

    One that was made from a spare may not have all that is its own: to make it again completes it.
    """
    return found is not None and found.is_running and not found.was_spare


def _gone(life: Life) -> Found:
    return Found(life=life, container_id="", is_running=False)

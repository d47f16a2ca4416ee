"""Fair shares over time: who has used the least for his weight goes next, and what was used is forgotten by halves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import KernelId
from backendai_ray.core.scheduling import AgentSelection, PendingSession, RunningKernel, Snapshot
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.core.usage import HOUR_S, LOOKBACK_S, Account, Usage, account_of, decayed, held_since

from .columns import Room
from .fair_tree import Branch, FairTreeQueue, Standings
from .queueing import QueueingPolicy, in_bands

_HALF_LIFE_H = 168.0
_AHEAD_S = HOUR_S
"""What is held now counts as if it had been held for so much longer."""
_LONGEST_H = LOOKBACK_S / HOUR_S
_MOST_WEIGHT = 10_000


class FairSharePolicy(QueueingPolicy):
    """Starts, among sessions of one priority, one of the domain, project and user with the least for their weight.

    What a branch of that tree has used, of each slot, is weighed by its age so that it halves with every
    ``half_life_h``, as in Slurm's multifactor priority; divided by the half-life it is a mean over time (HTCondor's
    "real user priority"). What it holds now, what the pass has placed so far included, counts as held for one hour more
    (Kueue's "entry penalty"), so that not all that is free goes to one who is behind by little.

    A branch's standing is the largest part this makes of any slot of the group, over its weight: a dominant share over
    time. Siblings are compared level by level from the root down, as in Slurm's Fair Tree. While everybody always has
    something waiting, siblings thus come to have used resources in proportion to their weights; who was away goes
    first until he has caught up with what is not forgotten.

    Options: ``half_life_h`` (1 to 672, 168 if not given), ``weights`` (by ``DOMAIN``, ``DOMAIN/PROJECT`` or
    ``DOMAIN/PROJECT/USER``; 1 if not named), ``strict`` and ``preemption``.
    """

    name = "fair-share"

    def __init__(
        self,
        *,
        selection: AgentSelection,
        half_life_h: float = _HALF_LIFE_H,
        weights: Mapping[str, float] | None = None,
        strict: bool = True,
        preemption: Mapping[str, Any] | None = None,
        consolidation: Mapping[str, Any] | None = None,
        **unknown: object,
    ) -> None:
        """Make the policy.

        Raises:
            InvalidParameter: an option is unknown, of the wrong type or out of range.
        """
        if unknown:
            option = min(unknown)
            message = f"options.{option}: fair-share knows only consolidation, half_life_h, preemption, strict, weights"
            raise InvalidParameter(message, field=f"options.{option}")
        super().__init__(selection=selection, strict=strict, preemption=preemption, consolidation=consolidation)
        if not _is_number(half_life_h) or not 1 <= half_life_h <= _LONGEST_H:
            message = f"options.half_life_h: {half_life_h!r} is no number of hours from 1 to {_LONGEST_H:g}"
            raise InvalidParameter(message, field="options.half_life_h")
        self._half_life_s = half_life_h * HOUR_S
        self._weights = _parse_weights({} if weights is None else weights)
        self._memo = _Memo(self._half_life_s)

    def _queue(self, snapshot: Snapshot, room: Room) -> Iterable[PendingSession]:
        totals = room.columns.capacity.sum(axis=0).tolist()
        standings = Standings(dict(zip(room.columns.slots, totals, strict=True)), self._weights)
        per_second = math.log(2) / self._half_life_s
        since_hour = math.exp2(-(snapshot.now % HOUR_S) / self._half_life_s)
        for account, usage in snapshot.usage.items():
            standings.add(account, self._memo.used(account, usage, snapshot.now), per_second * since_hour)
        for account, held in self._held(snapshot).items():
            standings.add(account, held, per_second)
        return FairTreeQueue(in_bands(snapshot.pending), standings, entry=_AHEAD_S * per_second)

    def _held(self, snapshot: Snapshot) -> Mapping[Account, Mapping[str, float]]:
        """Return what the kernels that run count for, in units times seconds by account and slot."""
        sums: dict[Account, dict[str, float]] = {}
        for kernel, slots in self._memo.slots(snapshot.running):
            had_s = held_since(kernel.placed_at, snapshot.now, self._half_life_s) + _AHEAD_S
            held = sums.setdefault(account_of(kernel), {})
            for slot, units in slots.items():
                held[slot] = held.get(slot, 0.0) + units * had_s
        return sums


class _Memo:
    """What need not be worked out anew in every pass; forgetting it changes nothing."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._used: dict[Account, tuple[Usage, float, dict[str, float]]] = {}
        self._slots: dict[KernelId, tuple[RunningKernel, ResourceSlots]] = {}

    def used(self, account: Account, usage: Usage, now: float) -> Mapping[str, float]:
        """Return usage weighed by its age at the last full hour: since then all of it has aged alike."""
        hour = now // HOUR_S * HOUR_S
        known = self._used.get(account)
        if known is None or known[0] is not usage or known[1] != hour:
            known = self._used[account] = (usage, hour, decayed(usage, hour, self._half_life_s))
        return known[2]

    def slots(self, running: Iterable[RunningKernel]) -> Iterable[tuple[RunningKernel, ResourceSlots]]:
        """Return each kernel with what it holds."""
        known: dict[KernelId, tuple[RunningKernel, ResourceSlots]] = {}
        for kernel in running:
            before = self._slots.get(kernel.kernel_id)
            still = before is not None and before[0] is kernel
            known[kernel.kernel_id] = before if before and still else (kernel, kernel.allocation.slots())
        self._slots = known
        return known.values()


def _parse_weights(weights: object) -> dict[Branch, float]:
    if not isinstance(weights, Mapping):
        raise InvalidParameter("options.weights: is no table of weights by branch", field="options.weights")
    parsed: dict[Branch, float] = {}
    for name, weight in weights.items():
        branch = tuple(str(name).split("/"))
        if not all(branch) or len(branch) > 3:
            message = f"options.weights: {str(name)[:80]!r} is no DOMAIN, DOMAIN/PROJECT or DOMAIN/PROJECT/USER"
            raise InvalidParameter(message, field="options.weights")
        if not _is_number(weight) or not 0 < weight <= _MOST_WEIGHT:
            message = f"options.weights: {weight!r} of {str(name)[:80]!r} is no number above 0, up to {_MOST_WEIGHT:g}"
            raise InvalidParameter(message, field="options.weights")
        parsed[branch] = float(weight)
    return parsed


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

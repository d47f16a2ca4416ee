"""What the free accelerators of nodes are worth to a mix of requests, and what placing one request costs of it.

For one kind of accelerator and one expected request, a node's free devices are worth what such requests could use of
them: as many copies as fit on the devices, and, of these, only a part where cores or memory give out first. Summed up
over the mix this is the node's worth; a placement costs the difference. It foresees what strands: accelerators without
cores beside them, shares that no request fits in, and devices that are the only ones some requests may use.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from backendai_ray.core.slots import UNITS_PER_COUNT

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Reals = NDArray[np.float32]
_Kind = TypeVar("_Kind", bound=Hashable)

_AT_MOST = 128
"""More kinds of requests than this, the most frequent, are not looked at: they cost time and change little."""
_MOST_REACHED, _LEAST_REACHED = 0.9, 0.3
_TIGHT, _FALL = 0.9, 3.0
"""From this tightness on (see :func:`reach_of`), the reach falls so much faster than tightness rises."""


class Shape(NamedTuple):
    """What one request takes of a node: cores and memory in their units, and ``devices``, ``units`` of each."""

    cpu: int
    mem: int
    devices: int
    units: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Expected requests for one kind of accelerator."""

    shapes: tuple[Shape, ...]
    share: tuple[float, ...]
    """How frequent each is."""
    reach: float
    """How much of the devices that one kind of request leaves without cores or memory is still usable to others."""


def reach_of(accelerators: float, cores: float, memory: float) -> float:
    """Return how much of what one kind of request leaves without cores or memory beside it others may still use.

    Requests that need less beside the device come as well, but the more cores or memory are asked for compared to
    accelerators, the less is left for them. 1 would mean that cores and memory never give out before the last request
    (what published FGD assumes), 0 that only one kind of request comes to each node.

    Args:
        accelerators: What all expected requests ask for over what there is.
        cores: The same of cores, requests without accelerators included.
        memory: The same of memory.
    """
    tightness = max(cores, memory) / max(accelerators, 1e-9)
    return min(_MOST_REACHED, max(_LEAST_REACHED, _MOST_REACHED - _FALL * (tightness - _TIGHT)))


def most_frequent(counts: Mapping[_Kind, int]) -> list[tuple[_Kind, float]]:
    """Return the kinds of requests that matter, the most frequent first, with their frequency."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [(kind, count / total) for kind, count in ordered[:_AT_MOST]]


class Stock:
    """The accelerators of one kind on some nodes (rows), as they stand while requests are placed."""

    def __init__(self, cpu: Ints, mem: Ints, free: Ints, devices: Ints, mix: Mix, access: Mask) -> None:
        """Lay out the nodes.

        Args:
            cpu: Free cores per node, in units.
            mem: Free memory per node, in units.
            free: Free units per node and device; nodes with fewer devices than others have zeros.
            devices: How many devices each node has, free or not.
            mix: What is expected to come.
            access: Per node and expected request: whether the request could ever be placed there.
        """
        self._state: Reals = np.ascontiguousarray(np.stack((cpu, mem), axis=1), dtype=np.float32)
        self._free = free.copy()
        self._devices = devices
        self._take_mix(mix, access)

    def _take_mix(self, mix: Mix, access: Mask) -> None:
        sizes = sorted({shape.units for shape in mix.shapes} or {UNITS_PER_COUNT})
        largest = max(UNITS_PER_COUNT, int(self._free.max(initial=0)))
        left = np.arange(largest + 1)[:, None]
        self._copies_in: Reals = (left // np.array(sizes)).astype(np.float32)
        """Per free units of one device and size of a request: how many such requests fit in."""
        self._size = np.array([sizes.index(shape.units) for shape in mix.shapes], dtype=np.int64)
        self._counts = np.array([max(1, shape.devices) for shape in mix.shapes], dtype=np.float32)
        self._has_gangs = bool((self._counts > 1).any())
        self._per_cpu: Reals = (1 / np.array([max(1, s.cpu) for s in mix.shapes])).astype(np.float32)
        self._per_mem: Reals = (1 / np.array([max(1, s.mem) for s in mix.shapes])).astype(np.float32)
        self._reach = np.float32(mix.reach)
        self._worth = self._worth_of_one(mix, access)
        copies = self._copies_in[self._free].sum(axis=1)
        self._state = np.concatenate((copies, self._state[:, -2:]), axis=1)
        """Per node: the copies of each size that fit on its devices, then its cores, then its memory."""
        self._now = self._value(np.arange(len(self._state)), self._state)
        """What each node is worth as it stands, but for the stale ones."""
        self._stale: dict[int, None] = {}

    def expect(self, mix: Mix, access: Mask) -> None:
        """Expect another mix from now on."""
        self._take_mix(mix, access)

    def _worth_of_one(self, mix: Mix, access: Mask) -> Reals:
        """Return per node and expected request what placing one of them there is worth.

        Requests that few devices can serve make each of those devices worth more: that is what keeps scarce models
        free for those who can use nothing else.
        """
        serving = np.maximum(self._devices @ access, 1) / max(1, int(self._devices.sum()))
        units = np.array([shape.devices * shape.units for shape in mix.shapes]) / UNITS_PER_COUNT
        # In rows: numpy takes some of them out quickly only so.
        return np.ascontiguousarray(access * (np.array(mix.share) * units / serving), dtype=np.float32)

    def changed(self, row: int, cpu: int, mem: int, free: Sequence[int] | Ints) -> None:
        """Take note of what is free on a node now."""
        if len(free) < self._free.shape[1]:
            self._free[row] = 0
        self._free[row, : len(free)] = free
        state = self._state[row]
        state[:-2] = self._copies_in.take(self._free[row], axis=0).sum(axis=0)
        state[-2], state[-1] = cpu, mem
        self._stale[row] = None

    def loss(self, shape: Shape, rows: Ints) -> Reals:
        """Return for each of the rows what placing a request there costs, in devices; it may be a little below zero."""
        # What changed nodes are worth now, and what all would be after: at once, because numpy's cost is per call.
        stale = list(self._stale)
        self._stale.clear()
        both = np.concatenate((stale, rows)).astype(np.int64) if stale else rows
        states: Reals = self._state.take(both, axis=0)
        self._place(shape, states[len(stale) :], rows)
        values = self._value(both, states)
        if stale:
            self._now[stale] = values[: len(stale)]
        lost: Reals = self._now.take(rows) - values[len(stale) :]
        return lost

    def _place(self, shape: Shape, states: Reals, rows: Ints) -> None:
        """Change the states of the rows to what they are with a request placed there."""
        taken = np.zeros(states.shape[1], dtype=np.float32)
        if shape.devices and shape.units >= UNITS_PER_COUNT:
            taken[:-2] = shape.devices * self._copies_in[UNITS_PER_COUNT]
        elif shape.devices:
            self._take_parts(states[:, :-2], shape, rows)
        taken[-2:] = shape.cpu, shape.mem
        states -= taken
        np.maximum(states, 0, out=states)

    def _take_parts(self, copies: Reals, shape: Shape, rows: Ints) -> None:
        """Take parts of the fullest devices that suffice, as the allocator does."""
        free = self._free[rows]
        every = np.arange(len(rows))
        order = np.where(free >= shape.units, free, np.iinfo(np.int64).max)
        for _ in range(shape.devices):
            device = order.argmin(axis=1)
            old = free[every, device]
            copies -= self._copies_in[old]
            copies += self._copies_in[np.maximum(old - shape.units, 0)]
            order[every, device] = np.iinfo(np.int64).max

    def _value(self, rows: Ints, states: Reals) -> Reals:
        fit: Reals = states.take(self._size, axis=1)
        if self._has_gangs:
            fit /= self._counts
            np.floor(fit, out=fit)
        beside = states[:, -2:-1] * self._per_cpu
        np.minimum(beside, states[:, -1:] * self._per_mem, out=beside)
        # Reciprocals round: a request that fits exactly must still count as one that fits.
        possible = beside > 0.9999
        np.minimum(beside, fit, out=beside)
        beside *= 1 - self._reach
        fit *= self._reach
        fit += beside
        fit *= possible
        fit *= self._worth.take(rows, axis=0)
        value: Reals = fit.sum(axis=1)
        return value

"""The original's allocator, asked for rates by :mod:`bench.alloc`; runs in an environment of its own, without ours.

A line ``CASE STRATEGY SECONDS`` on stdin is answered by a line on stdout: allocate and free pairs per second.
"""

from __future__ import annotations

import importlib
import sys
import time
from decimal import Decimal
from typing import Any

_BATCH = 20


def make_map(case: str, strategy: str) -> tuple[Any, Any]:
    """Return a map that is partly held, and the request that is allocated and freed.

    Args:
        case: One of ``gpu8_discrete_2``, ``cpu128_discrete_8`` and ``gpu8_fraction_0.5``.
        strategy: ``fill`` or ``evenly``.
    """
    agent = importlib.import_module("ai.backend.agent.alloc_map")
    common = importlib.import_module("ai.backend.common.types")
    discrete, fraction = agent.DiscretePropertyAllocMap, agent.FractionAllocMap
    kind, slot, devices, held, wanted, options = {
        "gpu8_discrete_2": (discrete, "cuda.device", 8, "3", "2", {}),
        "cpu128_discrete_8": (discrete, "cpu", 128, "64", "8", {}),
        "gpu8_fraction_0.5": (fraction, "cuda.shares", 8, "2.5", "0.5", {"quantum_size": Decimal("0.1")}),
    }[case]
    name = common.SlotName(slot)
    one = agent.DeviceSlotInfo(common.SlotTypes.COUNT, name, Decimal(1))
    made = kind(
        allocation_strategy=agent.AllocationStrategy[strategy.upper()],
        device_slots={common.DeviceId(str(number)): one for number in range(devices)},
        **options,
    )
    made.allocate({name: Decimal(held)})
    return made, {name: Decimal(wanted)}


def main() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        case, strategy, seconds = line.split()
        made, request = make_map(case, strategy)
        pairs, started = 0, time.perf_counter()
        while time.perf_counter() - started < float(seconds):
            for _ in range(_BATCH):
                made.free(made.allocate(request))
            pairs += _BATCH
        print(pairs / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()

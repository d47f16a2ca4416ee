"""What holds of the ledger whatever is held and freed, and in which order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.manager.ledger import Ledger
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import AgentId, DeviceId, KernelId
from backendai_ray.core.scheduling import KernelPlacement
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

NODES = ("a1", "a2")
DEVICES = (
    Device(CPU, DeviceId("0"), 1000),
    Device(CPU, DeviceId("1"), 1000),
    Device(MEM, DeviceId("0"), 100),
)


def a_ledger() -> Ledger:
    ledger = Ledger()
    for node in NODES:
        ledger.equip(AgentId(node), DEVICES)
    return ledger


@st.composite
def placements(draw: Any) -> list[KernelPlacement]:
    gang = []
    for kernel in draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)):
        parts = draw(
            st.lists(
                st.tuples(st.sampled_from([(CPU, "0"), (CPU, "1"), (MEM, "0"), (CPU, "9")]), st.integers(1, 1200)),
                max_size=3,
            )
        )
        allocation = Allocation.of((slot, DeviceId(device), units) for (slot, device), units in parts)
        gang.append(KernelPlacement(KernelId(f"k{kernel}"), AgentId(draw(st.sampled_from([*NODES, "a9"]))), allocation))
    return gang


@given(st.lists(st.one_of(placements(), st.integers(0, 9)), max_size=25))
@settings(max_examples=120, deadline=None)
def test_never_over_capacity_and_all_or_nothing(moves: list[list[KernelPlacement] | int]) -> None:
    ledger = a_ledger()
    for move in moves:
        before = dict(ledger.held)
        if isinstance(move, int):
            ledger.release(KernelId(f"k{move}"))
            assert KernelId(f"k{move}") not in ledger.held
            continue
        why = ledger.hold_all(move)
        assert ledger.overbooked() == []
        if why:
            assert dict(ledger.held) == before
        else:
            assert {k.kernel_id for k in move} == ledger.held.keys() - before.keys()
            assert all(ledger.held[k.kernel_id] == (k.agent_id, k.allocation) for k in move)


@given(st.lists(placements(), max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_frees_does_not_matter(gangs: list[list[KernelPlacement]], random: Any) -> None:
    ledger = a_ledger()
    for gang in gangs:
        ledger.hold_all(gang)
    kernels = list(ledger.held)
    random.shuffle(kernels)
    for kernel in kernels:
        ledger.release(kernel)
        ledger.release(kernel)
    assert not ledger.held
    assert all(ledger.occupied(AgentId(node)) == ResourceSlots() for node in NODES)
    everything = Allocation.of((d.slot, d.id, d.capacity) for d in DEVICES)
    assert not ledger.hold_all([KernelPlacement(KernelId("all"), AgentId(node), everything) for node in NODES[:1]])


def test_what_runs_is_a_fact_whatever_the_report_says() -> None:
    """1. A kernel is known before its node has reported. 2. The report shows fewer devices. 3. It is still held."""
    ledger = Ledger()
    held = Allocation.of([(CPU, DeviceId("0"), 1000), (CPU, DeviceId("7"), 1000)])
    ledger.adopt(KernelId("k"), AgentId("a1"), held)
    ledger.equip(AgentId("a1"), DEVICES)
    assert ledger.held == {"k": ("a1", held)}
    one_core = Allocation.of([(CPU, DeviceId("0"), 1)])
    assert "has 0 free" in ledger.hold_all([KernelPlacement(KernelId("other"), AgentId("a1"), one_core)])
    ledger.release(KernelId("k"))
    assert not ledger.hold_all([KernelPlacement(KernelId("other"), AgentId("a1"), one_core)])


def test_what_could_ever_fit() -> None:
    ledger = a_ledger()
    assert ledger.could_hold(AgentId("a1"), ResourceSlots({CPU: 1000}), 2)
    assert not ledger.could_hold(AgentId("a1"), ResourceSlots({CPU: 1000}), 3)
    assert not ledger.could_hold(AgentId("a9"), ResourceSlots(), 1)

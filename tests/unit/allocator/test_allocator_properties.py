"""What must hold for any node and any history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, SlotKind, SlotName, slot_kind

GPU, SHARES = SlotName("cuda.device"), SlotName("cuda.shares")
DIVISIBLE = (SlotKind.COUNT, SlotKind.BYTES)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Device, ...]:
    numas = draw(st.sampled_from([(None,), (0,), (0, 1), (0, 1, 2, 3), (None, 0)]))
    threads = draw(st.sampled_from([1, 2]))
    cpu_capacity = draw(st.sampled_from([500, 1000, 1000, 1500, 2000, 3000]))
    devices: list[Device] = []
    for core in range(draw(st.integers(0, 6))):
        numa = numas[core % len(numas)]
        ids = [str(core * threads + t) for t in range(threads)]
        attributes = {"siblings": ",".join(ids)} if threads > 1 else {}
        devices += [Device(CPU, DeviceId(i), cpu_capacity, numa, attributes=attributes) for i in ids]
    devices += [Device(MEM, DeviceId(f"m{i}"), draw(st.integers(0, 50)), numa) for i, numa in enumerate(numas)]
    wired = draw(st.booleans())
    devices += [
        Device(
            GPU,
            DeviceId(f"g{i}"),
            1000,
            numas[i % len(numas)],
            attributes={"pcie": draw(st.sampled_from(["a/0", "a/1"])), "nvlink": f"g{i ^ 1}=2"} if wired else {},
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    shares = draw(st.sampled_from([500, 1000, 4000]))
    devices += [
        Device(SHARES, DeviceId(f"s{i}"), shares, numas[i % len(numas)]) for i in range(draw(st.integers(0, 4)))
    ]
    return tuple(devices)


requests = st.builds(
    lambda cpu, mem, gpu, shares: ResourceSlots([(CPU, cpu), (MEM, mem), (GPU, gpu * 1000), (SHARES, shares * 10)]),
    st.one_of(st.integers(0, 12).map(lambda n: n * 1000), st.integers(0, 12_000)),
    st.integers(0, 60),
    st.integers(0, 4),
    st.integers(0, 250),
)


@given(nodes(), st.lists(requests, max_size=12))
def test_allocate_then_free_is_the_identity(devices: tuple[Device, ...], asked: list[ResourceSlots]) -> None:
    room = DeviceMap(devices)
    for number, slots in enumerate(asked):
        before = room.copy()
        found = room.allocate(slots)
        assert room == before
        if isinstance(found, Allocation):
            assert found.slots() == slots
            kernel = KernelId(f"k{number}")
            room.hold(kernel, found)
            assert room.free() + slots == before.free()
            assert room.release(kernel) == found
            assert room == before
            room.hold(kernel, found)


@given(nodes(), st.lists(requests, max_size=12), st.randoms(use_true_random=False))
def test_order_of_frees_does_not_matter_and_all_comes_back(
    devices: tuple[Device, ...], asked: list[ResourceSlots], random: object
) -> None:
    room = DeviceMap(devices)
    _fill(room, asked)
    other = DeviceMap(devices, room.held)
    assert other == room
    order = list(room.held)
    for kernel in order:
        room.release(kernel)
    random.shuffle(order)  # type: ignore[attr-defined]
    for kernel in order:
        other.release(kernel)
    assert room == other == DeviceMap(devices)


@given(nodes(), st.lists(requests, max_size=10), st.lists(requests, max_size=10))
def test_what_was_planned_on_a_copy_is_accepted_by_the_original(
    devices: tuple[Device, ...], before: list[ResourceSlots], planned: list[ResourceSlots]
) -> None:
    room = DeviceMap(devices)
    _fill(room, before, prefix="before")
    mirror = room.copy()
    _fill(mirror, planned, prefix="planned")
    for kernel, allocation in mirror.held.items():
        room.hold(kernel, allocation)
    assert room == mirror


@given(nodes(), st.lists(requests, max_size=10), requests)
def test_what_is_divisible_and_fits_by_totals_is_never_refused(
    devices: tuple[Device, ...], before: list[ResourceSlots], request: ResourceSlots
) -> None:
    room = DeviceMap(devices)
    _fill(room, before)
    found = room.allocate(request)
    if isinstance(found, Shortage):
        assert found.short_by > 0
        if found.fragmented:
            assert slot_kind(found.slot) not in DIVISIBLE
            assert request.amount(found.slot) <= room.free_units(found.slot)
        else:
            assert request.amount(found.slot) == room.free_units(found.slot) + found.short_by
    else:
        assert request.fits_in(room.free())


@given(nodes(), st.lists(requests, max_size=8))
def test_deterministic_whatever_the_order_of_devices(devices: tuple[Device, ...], asked: list[ResourceSlots]) -> None:
    one, other = DeviceMap(devices), DeviceMap(tuple(reversed(devices)))
    _fill(one, asked)
    _fill(other, asked)
    assert one.held == other.held


@given(nodes(), st.lists(requests, max_size=8))
def test_shares_below_one_device_are_on_one_device(devices: tuple[Device, ...], asked: list[ResourceSlots]) -> None:
    largest = max((d.capacity for d in devices if d.slot == SHARES), default=0)
    room = DeviceMap(devices)
    _fill(room, asked)
    for allocation in room.held.values():
        parts = allocation.devices(SHARES)
        divided = [units for units in parts.values() if units < largest]
        assert len(divided) <= 1


class History(RuleBasedStateMachine):
    """Any order of holds and releases, against a plain ledger."""

    kernels = Bundle("kernels")

    def __init__(self) -> None:
        super().__init__()
        self.devices = tuple(
            [Device(CPU, DeviceId(str(i)), 1000, i // 4) for i in range(8)]
            + [Device(MEM, DeviceId(str(i)), 100, i) for i in range(2)]
            + [Device(GPU, DeviceId(str(i)), 1000, i // 2) for i in range(4)]
            + [Device(SHARES, DeviceId(str(i)), 1000, i // 2) for i in range(4)]
        )
        self.room = DeviceMap(self.devices)
        self.ledger: dict[KernelId, Allocation] = {}
        self.number = 0

    @rule(target=kernels, slots=requests)
    def take(self, slots: ResourceSlots) -> object:
        found = self.room.allocate(slots)
        if isinstance(found, Shortage):
            return multiple()
        self.number += 1
        kernel = KernelId(f"k{self.number}")
        self.room.hold(kernel, found)
        self.room.hold(kernel, found)
        self.ledger[kernel] = found
        return kernel

    @rule(kernel=consumes(kernels))
    def give_back(self, kernel: KernelId) -> None:
        assert self.room.release(kernel) == self.ledger.pop(kernel)
        assert self.room.release(kernel) == Allocation()

    @invariant()
    def never_over_capacity(self) -> None:
        used: dict[tuple[str, str], int] = {}
        for allocation in self.ledger.values():
            for slot, device, units in allocation.parts:
                used[slot, device] = used.get((slot, device), 0) + units
        for one in self.devices:
            taken = used.pop((one.slot, one.id), 0)
            assert taken <= one.capacity
            assert self.room.free_by_device(one.slot)[one.id] == one.capacity - taken
        assert not used
        assert self.room.held == self.ledger


TestHistory = History.TestCase


def _fill(room: DeviceMap, asked: list[ResourceSlots], prefix: str = "k") -> None:
    for number, slots in enumerate(asked):
        found = room.allocate(slots)
        if isinstance(found, Allocation):
            room.hold(KernelId(f"{prefix}{number}"), found)

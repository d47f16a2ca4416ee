"""Which devices are chosen, case by case."""

from __future__ import annotations

import pytest

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import Conflict
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.slots import CPU, MEM, ResourceSlots, SlotName

GPU, SHARES = SlotName("cuda.device"), SlotName("cuda.shares")


def cores(count: int, *, numas: int = 1, threads: int = 1, capacity: int = 1000) -> list[Device]:
    """``count`` logical CPUs; the second threads are numbered after all the first ones, as Linux does."""
    physical = count // threads
    found = []
    for i in range(count):
        core = i % physical
        siblings = ",".join(str(core + t * physical) for t in range(threads))
        numa = core * numas // physical
        found.append(Device(CPU, DeviceId(str(i)), capacity, numa, attributes={"siblings": siblings}))
    return found


def gpus(count: int, *, numas: int = 1, slot: SlotName = GPU) -> list[Device]:
    return [Device(slot, DeviceId(str(i)), 1000, i * numas // count) for i in range(count)]


def memory(*sizes: int) -> list[Device]:
    return [Device(MEM, DeviceId(str(numa)), size, numa) for numa, size in enumerate(sizes)]


def take(room: DeviceMap, kernel: str = "k", **amounts: int) -> Allocation:
    found = room.allocate(ResourceSlots({name.replace("_", "."): units for name, units in amounts.items()}))
    assert isinstance(found, Allocation), found
    room.hold(KernelId(kernel), found)
    return found


def test_whole_cores_are_distinct_devices() -> None:
    assert take(DeviceMap(cores(4)), cpu=3000).devices(CPU) == {"0": 1000, "1": 1000, "2": 1000}


def test_a_fraction_shares_a_core_that_is_shared_already() -> None:
    room = DeviceMap(cores(4))
    take(room, "a", cpu=500)
    assert take(room, "b", cpu=300).devices(CPU) == {"0": 300}
    assert take(room, "c", cpu=3200).devices(CPU) == {"0": 200, "1": 1000, "2": 1000, "3": 1000}


def test_leftovers_of_cores_are_used_together_when_nothing_else_is_free() -> None:
    room = DeviceMap(cores(2))
    take(room, "a", cpu=600)
    room.hold(KernelId("b"), Allocation.of([(CPU, DeviceId("1"), 600)]))
    assert take(room, "c", cpu=800).devices(CPU) == {"0": 400, "1": 400}


def test_overcommitted_cores_are_loaded_evenly() -> None:
    room = DeviceMap(cores(2, capacity=2000))
    assert take(room, "a", cpu=1000).devices(CPU) == {"0": 1000}
    assert take(room, "b", cpu=1000).devices(CPU) == {"1": 1000}
    assert take(room, "c", cpu=2000).devices(CPU) == {"0": 1000, "1": 1000}
    assert room.free().amount(CPU) == 0


def test_one_kernel_may_take_an_overcommitted_core_twice() -> None:
    assert take(DeviceMap(cores(2, capacity=2000)), cpu=3000).devices(CPU) == {"0": 2000, "1": 1000}


def test_hyper_thread_siblings_go_together() -> None:
    room = DeviceMap(cores(8, threads=2))
    assert set(take(room, "a", cpu=2000).devices(CPU)) == {"0", "4"}
    assert set(take(room, "b", cpu=1000).devices(CPU)) == {"1"}
    assert set(take(room, "c", cpu=1000).devices(CPU)) == {"5"}, "the other thread of a core that is broken already"
    assert set(take(room, "d", cpu=4000).devices(CPU)) == {"2", "6", "3", "7"}


def test_gpus_come_from_one_numa_node_the_tightest() -> None:
    room = DeviceMap(gpus(8, numas=2) + cores(16, numas=2) + memory(100, 100))
    first = take(room, "a", cuda_device=1000, cpu=1000, mem=10)
    assert set(first.devices(GPU)) == {"0"}
    second = take(room, "b", cuda_device=3000, cpu=3000, mem=10)
    assert set(second.devices(GPU)) == {"1", "2", "3"}
    third = take(room, "c", cuda_device=4000, cpu=4000, mem=10)
    assert set(third.devices(GPU)) == {"4", "5", "6", "7"}
    assert set(third.devices(CPU)) <= {str(i) for i in range(8, 16)}
    assert third.devices(MEM) == {"1": 10}


def test_cores_and_memory_follow_the_gpu() -> None:
    room = DeviceMap(gpus(2, numas=2) + cores(8, numas=2) + memory(100, 100))
    room.hold(KernelId("x"), Allocation.of([(GPU, DeviceId("0"), 1000)]))
    got = take(room, "a", cuda_device=1000, cpu=2000, mem=50)
    assert got.devices(GPU) == {"1": 1000}
    assert set(got.devices(CPU)) == {"4", "5"}
    assert got.devices(MEM) == {"1": 50}


def test_cores_and_memory_stay_on_one_numa_node_without_any_gpu() -> None:
    room = DeviceMap(cores(8, numas=2) + memory(100, 100))
    take(room, "a", cpu=3000, mem=90)
    got = take(room, "b", cpu=1000, mem=50)
    assert set(got.devices(CPU)) == {"4"}, "node 0 has a core left but no memory for it"
    assert got.devices(MEM) == {"1": 50}


def test_memory_is_spread_when_it_must_be() -> None:
    room = DeviceMap(cores(4, numas=2) + memory(100, 100))
    assert take(room, cpu=1000, mem=150).devices(MEM) == {"0": 100, "1": 50}


def test_shares_are_packed_so_that_whole_devices_stay_whole() -> None:
    room = DeviceMap(gpus(3, slot=SHARES))
    take(room, "a", cuda_shares=500)
    assert take(room, "b", cuda_shares=300).devices(SHARES) == {"0": 300}
    assert take(room, "c", cuda_shares=2000).devices(SHARES) == {"1": 1000, "2": 1000}


def test_shares_above_one_device_are_whole_devices_and_a_remainder() -> None:
    room = DeviceMap(gpus(3, slot=SHARES))
    take(room, "a", cuda_shares=400)
    assert take(room, "b", cuda_shares=1600).devices(SHARES) == {"0": 600, "1": 1000}


def test_a_share_is_never_split_over_devices() -> None:
    room = DeviceMap(gpus(2, slot=SHARES))
    room.hold(KernelId("a"), Allocation.of([(SHARES, DeviceId("0"), 600)]))
    room.hold(KernelId("b"), Allocation.of([(SHARES, DeviceId("1"), 700)]))
    shortage = room.allocate(ResourceSlots([(SHARES, 600)]))
    assert shortage == Shortage(SHARES, 600, 200, fragmented=True)
    assert str(shortage) == "cuda.shares 0.6 is free only in pieces (the best fit is short by 0.2)"


def test_shortage_says_which_slot_and_by_how_much() -> None:
    room = DeviceMap(cores(2) + memory(2**30))
    shortage = room.allocate(ResourceSlots([(CPU, 4000), (MEM, 2**29)]))
    assert shortage == Shortage(CPU, 4000, 2000)
    assert str(shortage) == "cpu 4 is short by 2"
    assert room.allocate(ResourceSlots([(GPU, 1000)])) == Shortage(GPU, 1000, 1000)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(CPU, "9", 1000)], "has no cpu device 9"),
        ([(SlotName("npu.device"), "0", 1000)], "has no npu.device device 0"),
        ([(CPU, "0", 1001)], "has 1 free, not 1.001"),
        ([(GPU, "0", 500)], "given out whole only"),
        ([(CPU, "1", 1000), (MEM, "0", 101)], "has 100 free, not 101"),
        ([(CPU, "1", -1)], "not 0"),
    ],
)
def test_hold_refuses_what_is_not_there_and_changes_nothing(parts: list[tuple[SlotName, str, int]], words: str) -> None:
    room = DeviceMap(cores(2) + memory(100) + gpus(1))
    before = room.copy()
    with pytest.raises(Conflict, match=words):
        room.hold(KernelId("k"), Allocation.of((slot, DeviceId(device), units) for slot, device, units in parts))
    assert room == before


def test_hold_is_idempotent_but_not_for_other_devices() -> None:
    room = DeviceMap(cores(2))
    one = Allocation.of([(CPU, DeviceId("0"), 1000)])
    room.hold(KernelId("k"), one)
    room.hold(KernelId("k"), one)
    with pytest.raises(Conflict, match="holds other devices already"):
        room.hold(KernelId("k"), Allocation.of([(CPU, DeviceId("1"), 1000)]))
    assert room.free() == ResourceSlots([(CPU, 1000)])


def test_parts_of_one_device_add_up_before_they_are_checked() -> None:
    room = DeviceMap(cores(1))
    doubled = Allocation(((CPU, DeviceId("0"), 600), (CPU, DeviceId("0"), 600)))
    with pytest.raises(Conflict):
        room.hold(KernelId("k"), doubled)


def test_facts_are_taken_as_they_are_even_beyond_capacity() -> None:
    facts = {
        KernelId("a"): Allocation.of([(CPU, DeviceId("0"), 800), (GPU, DeviceId("broken"), 1000)]),
        KernelId("b"): Allocation.of([(CPU, DeviceId("0"), 800)]),
    }
    room = DeviceMap(cores(2), facts)
    assert room.free() == ResourceSlots([(CPU, 1000)])
    assert take(room, "c", cpu=1000).devices(CPU) == {"1": 1000}
    room.release(KernelId("a"))
    assert room.free_by_device(CPU) == {"0": 200, "1": 0}
    room.release(KernelId("b"))
    room.release(KernelId("c"))
    assert room == DeviceMap(cores(2))


def test_a_copy_changes_on_its_own() -> None:
    room = DeviceMap(cores(2))
    twin = room.copy()
    take(twin, cpu=1000)
    assert room.free() == room.capacity()
    assert twin.emptied() == room


def test_two_devices_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="same id"):
        DeviceMap([Device(CPU, DeviceId("0"), 1000), Device(CPU, DeviceId("0"), 1000)])

"""Which set of linked devices is chosen."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core import device_sets
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.device_sets import NO_NUMA, BestLinked, FewestNumaNodes
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.core.topology import Layout, SlotLayout
from bench.nvidia_picks import DGX1_CASES, DGX1_VOLTA, GPU, OTHER_CASES, Case


def score(layout: SlotLayout, chosen: tuple[int, ...]) -> int:
    return sum(layout.links[i][j] for i, j in combinations(chosen, 2))


def nodes(layout: SlotLayout, chosen: tuple[int, ...]) -> int:
    return len({layout.numa[i] for i in chosen} - {NO_NUMA})


def cost(layout: SlotLayout, free: tuple[int, ...], near: tuple[int, ...], chosen: tuple[int, ...]) -> tuple[int, ...]:
    """What is minimised, spelt out."""
    rank = {node: near.index(node) for node in near} | {NO_NUMA: 0}
    far = sum(rank.get(layout.numa[i], len(near)) for i in chosen)
    left = tuple(i for i in free if i not in chosen)
    return nodes(layout, chosen), -score(layout, chosen), far, -score(layout, left)


@st.composite
def boxes(draw: st.DrawFn, *, max_size: int = 9) -> tuple[Device, ...]:
    size = draw(st.integers(2, max_size))
    devices = []
    for number in range(size):
        said = {
            "pcie": draw(st.sampled_from(["", "a", "a/0", "a/0/1", "a/0/2", "b/0", "b/1"])),
            "nvlink": ",".join(
                f"g{peer}={draw(st.integers(1, 3))}" for peer in draw(st.sets(st.integers(0, size - 1), max_size=3))
            ),
        }
        numa = draw(st.sampled_from([0, 0, 1, 2, None]))
        devices.append(Device(GPU, DeviceId(f"g{number}"), 1000, numa, attributes=said))
    return tuple(devices)


questions = st.tuples(st.randoms(use_true_random=False), st.permutations([0, 1, 2]), st.integers(0, 3))


@given(boxes(), questions)
def test_no_set_is_better(devices: tuple[Device, ...], question: tuple) -> None:  # type: ignore[type-arg]
    random, order, length = question
    layout = Layout.of(devices).slots[GPU]
    free = tuple(sorted(random.sample(range(len(devices)), random.randint(1, len(devices)))))
    count = random.randint(1, len(free))
    near = tuple(order[:length])
    chosen = tuple(BestLinked().choose(layout, free, count, near))
    assert len(set(chosen)) == count
    assert set(chosen) <= set(free)
    assert list(chosen) == sorted(chosen)
    if layout.links:
        known = tuple(node for node in near if node in layout.by_numa)
        best = min(combinations(free, count), key=lambda one: (cost(layout, free, known, one), one))
        assert cost(layout, free, known, chosen) == cost(layout, free, known, best)
        assert chosen == best or count == len(free)


@given(boxes(max_size=12), st.integers(1, 12))
def test_a_set_that_is_grown_is_whole_and_on_the_fewest_numa_nodes(devices: tuple[Device, ...], count: int) -> None:
    layout = Layout.of(devices).slots[GPU]
    free = tuple(range(len(devices)))
    count = min(count, len(free))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_sets, "EXACT_SETS", 0)
        chosen = tuple(BestLinked().choose(layout, free, count, ()))
    assert len(set(chosen)) == count
    fewest = FewestNumaNodes().choose(layout, free, count, ())
    assert nodes(layout, chosen) <= nodes(layout, tuple(fewest))


@pytest.mark.parametrize(("size", "count"), [(32, 8), (64, 32), (160, 2), (40, 3)])
def test_big_boxes(size: int, count: int) -> None:
    """Groups of eight that are fully linked: whatever is asked for fills groups."""
    devices = tuple(
        Device(
            GPU,
            DeviceId(f"g{i}"),
            1000,
            i // 32,
            attributes={"nvlink": ",".join(f"g{j}=2" for j in range(i // 8 * 8, i // 8 * 8 + 8) if j != i)},
        )
        for i in range(size)
    )
    layout = Layout.of(devices).slots[GPU]
    chosen = BestLinked().choose(layout, range(size), count, ())
    groups, rest = divmod(count, 8)
    sizes = sorted({i // 8: sum(j // 8 == i // 8 for j in chosen) for i in chosen}.values())
    assert sizes == sorted([8] * groups + [rest] * (rest > 0))


def choose(case: Case, *, numa: bool) -> tuple[SlotLayout, tuple[int, ...], tuple[int, ...]]:
    """Return the layout, our choice and NVIDIA's, both as positions."""
    layout = Layout.of(case.box.devices(numa=numa)).slots[GPU]
    free, pick = (tuple(sorted(layout.index[DeviceId(str(gpu))] for gpu in gpus)) for gpus in (case.free, case.pick))
    return layout, tuple(BestLinked().choose(layout, free, len(pick), ())), pick


@pytest.mark.parametrize("case", [*DGX1_CASES, *OTHER_CASES], ids=repr)
def test_nvidias_best_effort_policy_never_picks_better(case: Case) -> None:
    layout, ours, theirs = choose(case, numa=False)
    assert score(layout, ours) >= score(layout, theirs)
    layout, ours, theirs = choose(case, numa=True)
    assert (nodes(layout, ours), -score(layout, ours)) <= (nodes(layout, theirs), -score(layout, theirs))


def test_one_numa_node_comes_before_the_better_link() -> None:
    case = Case(DGX1_VOLTA, (0, 1, 4), (0, 4))
    assert choose(case, numa=False)[1] == (0, 4)
    assert choose(case, numa=True)[1] == (0, 1)


def test_one_gpu_is_taken_where_it_breaks_the_least() -> None:
    room = DeviceMap(DGX1_VOLTA.devices())
    room.hold(KernelId("a"), Allocation.of((GPU, DeviceId(gpu), 1000) for gpu in "456"))
    found = room.allocate(ResourceSlots({GPU: 1000}))
    assert isinstance(found, Allocation)
    assert set(found.devices(GPU)) == {"7"}, "four well linked ones stay together"


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_sets, "_REMEMBERED", 3)
    layout = Layout.of(DGX1_VOLTA.devices()).slots[GPU]
    warm = BestLinked()
    asked = [(free, count) for size in (4, 5) for free in combinations(range(8), size) for count in (1, 2)]
    first = [warm.choose(layout, free, count, ()) for free, count in asked]
    assert [warm.choose(layout, free, count, ()) for free, count in reversed(asked)] == first[::-1]
    assert len(warm._known) <= 3


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), max_size=12), st.randoms(use_true_random=False))
def test_a_plan_on_the_mirror_is_accepted_and_all_comes_back(asked: list[int], random: object) -> None:
    node = DeviceMap(DGX1_VOLTA.devices(numa=True))
    mirror = DeviceMap(DGX1_VOLTA.devices(numa=True))
    for number, count in enumerate(asked):
        found = mirror.allocate(ResourceSlots({GPU: count * 1000}))
        assert isinstance(found, Allocation) == (count * 1000 <= mirror.free_units(GPU))
        if isinstance(found, Allocation):
            mirror.hold(KernelId(f"k{number}"), found)
            node.hold(KernelId(f"k{number}"), found)
        else:
            for kernel in list(mirror.held)[:1]:
                assert mirror.release(kernel) == node.release(kernel)
    assert node == mirror
    order = list(node.held)
    random.shuffle(order)  # type: ignore[attr-defined]
    for kernel in order:
        node.release(kernel)
    assert node == DeviceMap(DGX1_VOLTA.devices(numa=True))


def test_sixteen_are_always_compared_exactly() -> None:
    assert all(comb(16, count) <= device_sets.EXACT_SETS for count in range(17))

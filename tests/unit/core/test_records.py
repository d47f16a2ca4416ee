"""The records that travel between actors: devices, allocations, reports, sessions."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.reports import DeviceTable
from backendai_ray.core.sessions import Kernel
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

from .builders import a_session

parts = st.lists(
    st.tuples(st.sampled_from([CPU, MEM]), st.sampled_from([DeviceId("0"), DeviceId("1")]), st.integers(0, 1000)),
    max_size=8,
)


@given(parts, st.randoms(use_true_random=False))
def test_an_allocation_is_the_same_however_it_is_put_together(
    given_parts: list[tuple[str, DeviceId, int]], dice: object
) -> None:
    shuffled = list(given_parts)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Allocation.of(given_parts), Allocation.of(shuffled)  # type: ignore[arg-type]
    assert one == other
    assert hash(one) == hash(other)
    assert len({(slot, device) for slot, device, _ in one.parts}) == len(one.parts)
    assert all(units for _, _, units in one.parts)
    assert one.slots().amount(CPU) == sum(units for slot, _, units in given_parts if slot == CPU)
    assert sum(one.devices(MEM).values()) == one.slots().amount(MEM)


def test_devices_as_columns_and_back() -> None:
    devices = (
        Device(CPU, DeviceId("0"), 1000, numa_node=0, model="core", attributes={"siblings": "0,4"}),
        Device(MEM, DeviceId("0"), 2**40),
    )
    table = DeviceTable.of(devices)
    assert table.capacity.dtype == np.int64
    assert table.devices() == devices
    assert pickle.loads(pickle.dumps(table)).devices() == devices
    assert DeviceTable.of(()).devices() == ()


def test_a_session_travels_whole_and_is_frozen() -> None:
    session = a_session(3, slots=ResourceSlots({CPU: 500}))
    assert pickle.loads(pickle.dumps(session)) == session
    with pytest.raises(FrozenInstanceError):
        session.version = 3  # type: ignore[misc]
    assert session.main is session.kernels[0]
    assert session.kernel(KernelId("k2")) is session.kernels[2]
    assert session.kernel(KernelId("nobody")) is None
    assert [kernel.hostname for kernel in session.kernels] == ["main1", "sub1", "sub2"]
    assert Kernel(id=KernelId("k"), role="sub", index=7).hostname == "sub7"

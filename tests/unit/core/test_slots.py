"""Resource slots: amounts as people write them, and exact arithmetic."""

from __future__ import annotations

import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.slots import (
    MAX_UNITS,
    ResourceSlots,
    SlotKind,
    format_amount,
    parse_amount,
    plain_amount,
    slot_kind,
    total,
)

amounts = st.dictionaries(st.sampled_from(["cpu", "mem", "cuda.device", "cuda.shares"]), st.integers(0, 10**12))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", SlotKind.COUNT),
        ("mem", SlotKind.BYTES),
        ("cuda.mem", SlotKind.BYTES),
        ("cuda.device", SlotKind.WHOLE),
        ("cuda.shares", SlotKind.SHARES),
        ("tpu.device", SlotKind.WHOLE),
    ],
)
def test_how_slots_are_counted(name: str, kind: SlotKind) -> None:
    assert slot_kind(name) is kind


@pytest.mark.parametrize(
    ("name", "text", "units"),
    [
        ("cpu", 4, 4000),
        ("cpu", "0.5", 500),
        ("cpu", ".25", 250),
        ("cpu", Decimal("0.001"), 1),
        ("cpu", 0, 0),
        ("mem", "4g", 4 * 2**30),
        ("mem", "512M", 512 * 2**20),
        ("mem", "1.5gib", 3 * 2**29),
        ("mem", "10kb", 10 * 2**10),
        ("mem", 1000, 1000),
        ("mem", "0.3k", 308),
        ("cuda.device", "2", 2000),
        ("cuda.shares", "0.25", 250),
    ],
)
def test_amounts_as_people_write_them(name: str, text: object, units: int) -> None:
    assert parse_amount(name, text) == units


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("cpu", "-1", "is no amount"),
        ("cpu", "", "is no amount"),
        ("cpu", "many", "a number such as"),
        ("cpu", "1e3", "is no amount"),
        ("cpu", "NaN", "is no amount"),
        ("cpu", float("inf"), "is no amount"),
        ("cpu", True, "is no amount"),
        ("cpu", None, "is no amount"),
        ("cpu", "4g", "size suffix"),
        ("cpu", "0.0001", "thousandths"),
        ("mem", "lots", "a size such as"),
        ("mem", "9" * 41, "is no amount"),
        ("mem", "8e", "more than any machine has"),
        ("cuda.device", "0.5", "whole devices"),
        ("cuda.shares", "0.333", "hundredths"),
    ],
)
def test_amounts_that_cannot_be(name: str, text: object, says: str) -> None:
    with pytest.raises(InvalidParameter, match=says) as caught:
        parse_amount(name, text)
    assert caught.value.details["field"] == f"resources.{name}"


@pytest.mark.parametrize("name", ["", "CPU", "a b", "x" * 33, "a.b.c", "1cpu", "cpu;drop"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidParameter, match="is no slot name"):
        ResourceSlots.parse({name: 1})


def test_as_people_read_them() -> None:
    slots = ResourceSlots.parse({"cpu": "1.5", "mem": "1536m", "cuda.device": 2})
    assert slots.human() == {"cpu": "1.5", "mem": "1536m", "cuda.device": "2"}
    assert slots.plain() == {"cpu": "1.5", "mem": str(1536 * 2**20), "cuda.device": "2"}
    assert repr(slots) == "ResourceSlots(cpu=1.5, cuda.device=2, mem=1536m)"


@given(st.sampled_from(["cpu", "mem"]), st.integers(0, MAX_UNITS - 1))
def test_what_is_written_is_read_again(name: str, units: int) -> None:
    assert parse_amount(name, format_amount(name, units)) == units
    assert parse_amount(name, plain_amount(name, units)) == units


@given(amounts, amounts)
def test_sums_and_differences_are_exact(one: dict[str, int], other: dict[str, int]) -> None:
    a, b = ResourceSlots(one), ResourceSlots(other)
    assert a + b == b + a == total([a, b])
    assert (a + b) - b == a
    assert all((a + b).amount(name) == one.get(name, 0) + other.get(name, 0) for name in (*one, *other))
    assert a.fits_in(a + b)
    assert a.shortfall(a + b) == ResourceSlots()
    assert a.fits_in(b) == (not a.shortfall(b))
    assert a.fits_in(b + a.shortfall(b))


@given(amounts)
def test_zero_is_as_good_as_missing(one: dict[str, int]) -> None:
    slots = ResourceSlots(one)
    assert slots == ResourceSlots({**dict.fromkeys(["cpu", "tpu"], 0), **one})
    assert hash(slots) == hash(ResourceSlots(dict(reversed(one.items()))))
    assert pickle.loads(pickle.dumps(slots)) == slots
    assert ResourceSlots(slots.to_json()) == slots


def test_below_zero_is_a_bug() -> None:
    with pytest.raises(ValueError, match="negative amount of cpu"):
        ResourceSlots({"cpu": 1}) - ResourceSlots({"cpu": 2})

"""Resource slots: exact amounts of what a node has and a session asks for.

An amount is kept as an integer of *units*: thousandths for counted slots (``cpu``, ``cuda.device``,
``cuda.shares``, any accelerator) and bytes for memory. Sums are therefore exact, compare exactly, and fit the
int64 columns of a snapshot. Decimals appear only where people read and write.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, NewType

from .errors import InvalidParameter

SlotName = NewType("SlotName", str)

CPU = SlotName("cpu")
MEM = SlotName("mem")

UNITS_PER_COUNT = 1000
MAX_UNITS = 2**62
"""Amounts stay below this, so that int64 columns never overflow when two are added."""

_SLOT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}(?:\.[a-z0-9][a-z0-9_-]{0,31})?")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([kmgtpe]?)(i?b?)", re.IGNORECASE)
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50, "e": 2**60}


class SlotKind(StrEnum):
    """How a slot is counted and shared."""

    BYTES = "bytes"
    """Memory; any number of bytes."""
    COUNT = "count"
    """Divisible devices such as CPU cores; thousandths."""
    WHOLE = "whole"
    """Devices that are given out whole (``cuda.device``)."""
    SHARES = "shares"
    """Devices that are given out in hundredths (``cuda.shares``)."""


def slot_kind(name: str) -> SlotKind:
    """Return how ``name`` is counted: by its well-known name or its suffix."""
    if name == MEM or name.endswith(".mem"):
        return SlotKind.BYTES
    if name == CPU:
        return SlotKind.COUNT
    if name.endswith(".shares"):
        return SlotKind.SHARES
    return SlotKind.WHOLE


def parse_amount(name: str, value: object, *, field: str = "resources") -> int:
    """Return the units of an amount as people write it.

    Args:
        name: The slot the amount is of.
        value: ``4``, ``"0.5"``, ``"4g"``, ``"512m"``, a Decimal; memory counts in binary multiples.
        field: The request's field, for the error.

    Raises:
        InvalidParameter: not a number, negative, beyond :data:`MAX_UNITS`, or finer than the slot allows.
    """
    label = f"{field}.{name}"
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise InvalidParameter(f"{label}: {value!r} is no amount", field=label)
    text = str(value).strip()
    match = _AMOUNT.fullmatch(text) if len(text) <= 40 else None
    if match is None:
        hint = "a size such as '512m' or '4g'" if slot_kind(name) is SlotKind.BYTES else "a number such as 1 or 0.5"
        raise InvalidParameter(f"{label}: {text[:40]!r} is no amount; give {hint}", field=label)
    number, suffix, unit = match.groups()
    kind = slot_kind(name)
    if kind is not SlotKind.BYTES and (suffix or unit):
        raise InvalidParameter(f"{label}: {text!r} has a size suffix, but {name} is counted", field=label)
    try:
        scaled = Decimal(number) * (_BINARY[suffix.lower()] if kind is SlotKind.BYTES else UNITS_PER_COUNT)
    except InvalidOperation:  # pragma: no cover - the pattern admits only numbers
        raise InvalidParameter(f"{label}: {text!r} is no amount", field=label) from None
    if scaled >= MAX_UNITS:
        raise InvalidParameter(f"{label}: {text!r} is more than any machine has", field=label)
    if kind is SlotKind.BYTES:
        return int(scaled.to_integral_value(rounding="ROUND_CEILING"))
    return _checked_grain(label, text, scaled, kind)


def _checked_grain(label: str, text: str, scaled: Decimal, kind: SlotKind) -> int:
    grain, said = {
        SlotKind.COUNT: (1, "thousandths"),
        SlotKind.WHOLE: (UNITS_PER_COUNT, "whole devices"),
        SlotKind.SHARES: (10, "hundredths"),
    }[kind]
    if scaled % grain:
        raise InvalidParameter(f"{label}: {text!r} is too fine; it is given out in {said}", field=label)
    return int(scaled)


def format_amount(name: str, units: int) -> str:
    """Return units as people read them: ``512m``, ``4g``, ``0.5``."""
    if slot_kind(name) is SlotKind.BYTES:
        for suffix in ("t", "g", "m", "k"):
            if units and units % _BINARY[suffix] == 0:
                return f"{units // _BINARY[suffix]}{suffix}"
        return str(units)
    return plain_amount(name, units)


def plain_amount(name: str, units: int) -> str:
    """Return units as a bare decimal number (bytes for memory), as the official API sends them."""
    if slot_kind(name) is SlotKind.BYTES:
        return str(units)
    whole, rest = divmod(units, UNITS_PER_COUNT)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


class ResourceSlots(Mapping[str, int]):
    """Immutable amounts by slot name, in units; a missing slot is zero.

    Addition and subtraction are exact; subtraction below zero raises ``ValueError``, because a negative amount
    in a ledger is a bug and never a value.
    """

    __slots__ = ("_units",)

    def __init__(self, units: Mapping[str, int] | Iterable[tuple[str, int]] = ()) -> None:
        cleaned = {name: amount for name, amount in sorted(dict(units).items()) if amount}
        for name, amount in cleaned.items():
            if amount < 0:
                raise ValueError(f"negative amount of {name}: {amount}")
        self._units = cleaned

    @classmethod
    def parse(cls, amounts: Mapping[str, object], *, field: str = "resources") -> ResourceSlots:
        """Read amounts as people write them.

        Raises:
            InvalidParameter: a slot name or an amount is not usable.
        """
        for name in amounts:
            if not _SLOT_NAME.fullmatch(str(name)):
                raise InvalidParameter(f"{field}: {str(name)[:40]!r} is no slot name", field=field)
        return cls({name: parse_amount(name, value, field=field) for name, value in amounts.items()})

    def __getitem__(self, name: str) -> int:
        return self._units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __contains__(self, name: object) -> bool:
        return name in self._units

    def items(self) -> ItemsView[str, int]:
        """Return names and amounts; as every mapping's, and quicker."""
        return self._units.items()

    def __hash__(self) -> int:
        return hash(tuple(self._units.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSlots) and self._units == other._units

    def __repr__(self) -> str:
        return f"ResourceSlots({', '.join(f'{k}={v}' for k, v in self.human().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (ResourceSlots, (self._units,))

    def amount(self, name: str) -> int:
        """Return the units of ``name``, zero when it is not there."""
        return self._units.get(name, 0)

    def __add__(self, other: ResourceSlots) -> ResourceSlots:
        return ResourceSlots({n: self.amount(n) + other.amount(n) for n in {*self, *other}})

    def __sub__(self, other: ResourceSlots) -> ResourceSlots:
        return ResourceSlots({n: self.amount(n) - other.amount(n) for n in {*self, *other}})

    def fits_in(self, room: ResourceSlots) -> bool:
        """Return whether every amount is at most what ``room`` has."""
        return all(units <= room.amount(name) for name, units in self._units.items())

    def shortfall(self, room: ResourceSlots) -> ResourceSlots:
        """Return by how much each slot exceeds ``room``; empty when it fits."""
        return ResourceSlots({n: max(0, units - room.amount(n)) for n, units in self._units.items()})

    def human(self) -> dict[str, str]:
        """Return amounts as people read them."""
        return {name: format_amount(name, units) for name, units in self._units.items()}

    def plain(self) -> dict[str, str]:
        """Return amounts as bare numbers, bytes for memory."""
        return {name: plain_amount(name, units) for name, units in self._units.items()}

    def to_json(self) -> dict[str, int]:
        """Return the units themselves, for records."""
        return dict(self._units)


def total(slots: Iterable[ResourceSlots]) -> ResourceSlots:
    """Return the exact sum."""
    sums: dict[str, int] = {}
    for one in slots:
        for name, units in one.items():
            sums[name] = sums.get(name, 0) + units
    return ResourceSlots(sums)

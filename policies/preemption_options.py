"""The options ``preemption`` and ``consolidation`` of the queueing policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from backendai_ray.core.errors import InvalidParameter


class Scope(StrEnum):
    """Whose sessions may be ended for one that waits."""

    OFF = "off"
    OWNER = "owner"
    """Those of the same access key."""
    PROJECT = "project"
    """Those of the same project of the same domain."""
    DOMAIN = "domain"
    GROUP = "group"
    """All of the resource group."""


class Mode(StrEnum):
    """What becomes of those that are ended."""

    RESCHEDULE = "reschedule"
    """They go back into the queue; sessions that do not allow that are left alone."""
    TERMINATE = "terminate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionOptions:
    """The option ``preemption``."""

    scope: Scope = Scope.OFF
    mode: Mode = Mode.RESCHEDULE
    min_runtime_s: float = 60.0
    """A session is left alone for so long after it was placed."""
    grace_s: float | None = None
    """How long processes have between the notice and the kill; ``None``: as at any end of a session."""

    @classmethod
    def parse(cls, given: object) -> PreemptionOptions:
        """Read the option; ``None``: nobody is ended for anybody.

        Raises:
            InvalidParameter: it is no mapping, or a field of it is missing, unknown or wrong.
        """
        if given is None:
            return cls()
        fields = _Fields("preemption", given, ("scope", "mode", "min_runtime_s", "grace_s"), "{scope: group}")
        return cls(
            scope=fields.one_of(Scope, "scope", None),
            mode=fields.one_of(Mode, "mode", Mode.RESCHEDULE),
            min_runtime_s=fields.seconds("min_runtime_s", 60.0),
            grace_s=fields.seconds_or_none("grace_s"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationOptions:
    """The option ``consolidation``."""

    max_moves: int = 0
    """So many sessions may be moved for one that waits; 0: none."""
    min_runtime_s: float = 600.0
    """A session is left alone for so long after it was placed."""
    grace_s: float | None = None
    """How long processes have between the notice and the kill; ``None``: as at any end of a session."""

    MOST_MOVES: ClassVar[int] = 8

    @classmethod
    def parse(cls, given: object) -> ConsolidationOptions:
        """Read the option; ``None``: nobody is moved for anybody.

        Raises:
            InvalidParameter: it is no mapping, or a field of it is missing, unknown or wrong.
        """
        if given is None:
            return cls()
        fields = _Fields("consolidation", given, ("max_moves", "min_runtime_s", "grace_s"), "{max_moves: 2}")
        return cls(
            max_moves=fields.whole("max_moves", most=cls.MOST_MOVES),
            min_runtime_s=fields.seconds("min_runtime_s", 600.0),
            grace_s=fields.seconds_or_none("grace_s"),
        )


_E = TypeVar("_E", Scope, Mode)
_LONGEST_S = 30 * 86400.0


class _Fields:
    """Reads the fields of one option, and names the one that is wrong."""

    def __init__(self, option: str, given: object, known: tuple[str, ...], example: str) -> None:
        self._option = option
        if not isinstance(given, Mapping):
            raise self._wrong("", f"{given!r} is no mapping; give for example {example}")
        self._given: Mapping[str, Any] = given
        for name in given:
            if name not in known:
                raise self._wrong(f".{name}", f"there is no such option; there are {', '.join(known)}")

    def one_of(self, kind: type[_E], name: str, default: _E | None) -> _E:
        value = self._given.get(name, default)
        try:
            return kind(str(value))
        except ValueError:
            raise self._wrong(f".{name}", f"{value!r} is not one of {', '.join(kind)}") from None

    def whole(self, name: str, *, most: int) -> int:
        value = self._given.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self._wrong(f".{name}", f"{value!r} is not a whole number between 0 and {most}")
        return value

    def seconds(self, name: str, default: float) -> float:
        value = self._given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_S:
            raise self._wrong(f".{name}", f"{value!r} is not a number of seconds between 0 and {_LONGEST_S:.0f}")
        return float(value)

    def seconds_or_none(self, name: str) -> float | None:
        return None if self._given.get(name) is None else self.seconds(name, 0.0)

    def _wrong(self, where: str, what: str) -> InvalidParameter:
        field = f"options.{self._option}{where}"
        return InvalidParameter(f"{field}: {what}", field=field)

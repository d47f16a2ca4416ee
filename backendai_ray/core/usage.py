"""Usage: how much the sessions of each user have held, and when, so that it can be weighed by its age.

What a kernel held is put on record when it gives its devices back: units times seconds, split over buckets of one hour.
Buckets older than two days are put together day by day, those older than four weeks are dropped. They do not depend on
any half-life, so a policy may choose (and change) its own. What runs is not in here; who looks at it knows since when.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

HOUR_S = 3600
DAY_S = 24 * HOUR_S
FINE_S = 2 * DAY_S
"""So long buckets of an hour are kept apart."""
LOOKBACK_S = 28 * DAY_S
"""Older usage counts for nothing."""


class Spender(Protocol):
    """What is charged to somebody."""

    @property
    def domain(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def user(self) -> str: ...


Account = tuple[str, str, str]
"""Domain, project and user: who is charged."""


def account_of(spender: Spender) -> Account:
    """Return who is charged."""
    return spender.domain, spender.project, spender.user


@dataclass(frozen=True, slots=True)
class Charge:
    """What one account used of one slot in one hour."""

    account: Account
    slot: str
    hour: int
    """When the hour began, Unix seconds; a multiple of 3600."""
    amount: float
    """Units times seconds."""


def charges_for(account: Account, slots: Mapping[str, int], since: float, until: float) -> Iterator[Charge]:
    """Split what was held from ``since`` to ``until`` (Unix seconds) over the hours, as far as anybody looks back."""
    since = max(since, until - LOOKBACK_S)
    hour = math.floor(since / HOUR_S) * HOUR_S
    while hour < until:
        seconds = min(until, hour + HOUR_S) - max(since, hour)
        if seconds > 0:
            for slot, units in slots.items():
                yield Charge(account, slot, hour, units * seconds)
        hour += HOUR_S


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was used in a span of time."""

    start: float
    width_s: float
    used: Mapping[str, float]
    """Units times seconds, by slot."""

    def weight(self, now: float, half_life_s: float) -> float:
        """Return what a unit in this bucket counts now: it halves with every half-life.

        The usage counts as spread evenly over the bucket; of the bucket that is open still, as if it had just closed.
        """
        age_s = max(0.0, now - self.start - self.width_s)
        spread = math.log(2) * self.width_s / half_life_s
        return math.exp2(-age_s / half_life_s) * -math.expm1(-spread) / spread


Usage = tuple[Bucket, ...]
"""Of one account, in order of time."""


def decayed(usage: Usage, now: float, half_life_s: float) -> dict[str, float]:
    """Return usage weighed by its age: units times seconds by slot."""
    weighed: dict[str, float] = {}
    for bucket in usage:
        if bucket.start + bucket.width_s < now - LOOKBACK_S:
            continue
        weight = bucket.weight(now, half_life_s)
        for slot, amount in bucket.used.items():
            weighed[slot] = weighed.get(slot, 0.0) + weight * amount
    return weighed


def held_since(since: float, now: float, half_life_s: float) -> float:
    """Return how many seconds, weighed by their age, something has been held that is held still."""
    return -math.expm1(-math.log(2) * max(0.0, now - since) / half_life_s) * half_life_s / math.log(2)


class UsageLedger:
    """The usage of every account in one resource group. In whatever order charges come, the sums are the same."""

    def __init__(self) -> None:
        self._accounts: dict[Account, dict[int, dict[str, float]]] = {}
        self._newest: dict[Account, int] = {}
        self._shown: dict[Account, Usage] = {}
        self._view: Mapping[Account, Usage] | None = MappingProxyType({})

    def add(self, charges: Iterable[Charge]) -> None:
        """Take charges in."""
        for charge in charges:
            spans = self._accounts.setdefault(charge.account, {})
            used = spans.setdefault(charge.hour, {})
            used[charge.slot] = used.get(charge.slot, 0.0) + charge.amount
            self._newest[charge.account] = max(charge.hour, self._newest.get(charge.account, charge.hour))
            self._shown.pop(charge.account, None)
            self._view = None
            if len(spans) > _MOST_SPANS:
                self._put_together(charge.account)

    def put(self, account: Account, usage: Usage) -> None:
        """Replace what is known of an account."""
        self._accounts[account] = {int(bucket.start): dict(bucket.used) for bucket in usage}
        self._newest[account] = max((int(bucket.start) for bucket in usage), default=0)
        self._shown.pop(account, None)
        self._view = None

    def view(self) -> Mapping[Account, Usage]:
        """Return every account's usage as it stands; an account that was not charged since is the same object."""
        if self._view is None:
            for account in self._accounts.keys() - self._shown.keys():
                self._shown[account] = self._put_together(account)
            self._view = MappingProxyType({account: self._shown[account] for account in sorted(self._shown)})
        return self._view

    def _put_together(self, account: Account) -> Usage:
        """Make days of old hours, drop what is older than anybody looks back, and return the buckets."""
        newest, spans = self._newest[account], self._accounts[account]
        widths: dict[int, int] = {}
        merged: dict[int, dict[str, float]] = {}
        for start in sorted(spans):
            if start < newest - LOOKBACK_S:
                continue
            day = start - start % DAY_S
            is_old = day + DAY_S <= newest - FINE_S  # once true for a day, it stays so
            key = day if is_old else start
            widths[key] = DAY_S if is_old else HOUR_S
            used = merged.setdefault(key, {})
            for slot, amount in spans[start].items():
                used[slot] = used.get(slot, 0.0) + amount
        self._accounts[account] = merged
        return tuple(Bucket(start, widths[start], dict(used)) for start, used in merged.items())


_MOST_SPANS = 256
"""An account of which nobody asks is put together when it has so many."""

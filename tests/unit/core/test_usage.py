"""Usage: charged by the hour, weighed by its age."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.usage import (
    DAY_S,
    HOUR_S,
    LOOKBACK_S,
    Account,
    Bucket,
    Usage,
    UsageLedger,
    charges_for,
    decayed,
    held_since,
)
from backendai_ray.records import decode, encode

ALICE: Account = ("default", "ml", "alice")
BOB: Account = ("default", "ml", "bob")
DAY_0 = 20_000 * DAY_S


def ledger_of(*spans: tuple[Account, int, float, float]) -> UsageLedger:
    ledger = UsageLedger()
    for account, units, since, until in spans:
        ledger.add(charges_for(account, {"cpu": units}, since, until))
    return ledger


def exactly(spans: list[tuple[Account, int, float, float]], account: Account, now: float, half_life_s: float) -> float:
    """The integral itself, without buckets."""
    return sum(
        units * (held_since(since, now, half_life_s) - held_since(until, now, half_life_s))
        for whose, units, since, until in spans
        if whose == account
    )


def test_a_span_is_split_over_the_hours_and_nothing_is_lost() -> None:
    charges = list(charges_for(ALICE, {"cpu": 2000, "mem": 5}, DAY_0 + 1800, DAY_0 + 2 * HOUR_S + 60))
    assert [(c.slot, c.hour - DAY_0, c.amount) for c in charges if c.slot == "cpu"] == [
        ("cpu", 0, 2000 * 1800),
        ("cpu", HOUR_S, 2000 * 3600),
        ("cpu", 2 * HOUR_S, 2000 * 60),
    ]
    assert sum(c.amount for c in charges if c.slot == "mem") == 5 * (1.5 * HOUR_S + 60)
    assert list(charges_for(ALICE, {"cpu": 1}, 100.0, 100.0)) == []
    assert list(charges_for(ALICE, {"cpu": 1}, 200.0, 100.0)) == []


def test_who_looks_back_sees_four_weeks() -> None:
    ledger = ledger_of((ALICE, 1, DAY_0 - 3 * LOOKBACK_S, DAY_0))
    assert sum(bucket.used["cpu"] for bucket in ledger.view()[ALICE]) == LOOKBACK_S
    old = ledger_of((ALICE, 1, DAY_0, DAY_0 + HOUR_S)).view()[ALICE]
    assert decayed(old, DAY_0 + LOOKBACK_S, LOOKBACK_S) != {}
    assert decayed(old, DAY_0 + LOOKBACK_S + 2 * HOUR_S, LOOKBACK_S) == {}


def test_usage_halves_with_every_half_life() -> None:
    usage = ledger_of((ALICE, 1000, DAY_0, DAY_0 + HOUR_S)).view()[ALICE]
    first = decayed(usage, DAY_0 + HOUR_S, DAY_S)["cpu"]
    assert decayed(usage, DAY_0 + HOUR_S + DAY_S, DAY_S)["cpu"] == pytest.approx(first / 2)
    assert decayed(usage, DAY_0 + HOUR_S + 3 * DAY_S, DAY_S)["cpu"] == pytest.approx(first / 8)
    assert decayed(usage, DAY_0, DAY_S)["cpu"] == first  # the open hour counts as if it had closed


def test_what_is_held_for_ever_counts_one_and_a_half_half_lives_at_most() -> None:
    assert held_since(0.0, 1e9, DAY_S) == pytest.approx(DAY_S / math.log(2))
    assert held_since(0.0, DAY_S, DAY_S) == pytest.approx(DAY_S / math.log(2) / 2)
    assert held_since(10.0, 0.0, DAY_S) == 0.0


def test_old_hours_become_days() -> None:
    ledger = ledger_of((ALICE, 1, DAY_0, DAY_0 + 10 * DAY_S))
    usage = ledger.view()[ALICE]
    days = [bucket for bucket in usage if bucket.width_s == DAY_S]
    assert len(days) == 7
    assert len(usage) - len(days) == 3 * 24
    assert [bucket.start for bucket in usage] == sorted(bucket.start for bucket in usage)
    assert decode(encode(usage), Usage) == usage  # type: ignore[arg-type]


def test_an_account_that_nobody_asks_about_stays_small() -> None:
    ledger = UsageLedger()
    for hour in range(0, 90 * DAY_S, HOUR_S):
        ledger.add(charges_for(ALICE, {"cpu": 1}, DAY_0 + hour, DAY_0 + hour + 60))
    assert len(ledger._accounts[ALICE]) < 300
    assert len(ledger.view()[ALICE]) < 24 * 3 + 28


def test_a_view_stays_as_it_was_and_who_is_not_charged_is_the_same_object() -> None:
    ledger = ledger_of((ALICE, 1, DAY_0, DAY_0 + 60), (BOB, 1, DAY_0, DAY_0 + 60))
    before = ledger.view()
    ledger.add(charges_for(ALICE, {"cpu": 1}, DAY_0, DAY_0 + 60))
    after = ledger.view()
    assert before[ALICE][0].used == {"cpu": 60}
    assert after[ALICE][0].used == {"cpu": 120}
    assert after[BOB] is before[BOB]
    assert ledger.view() is after


def test_what_is_known_of_an_account_can_be_replaced_and_added_to() -> None:
    usage = ledger_of((ALICE, 1, DAY_0, DAY_0 + 10 * DAY_S)).view()[ALICE]
    copy = UsageLedger()
    copy.put(ALICE, usage)
    assert copy.view()[ALICE] == usage
    copy.add(charges_for(ALICE, {"cpu": 1}, DAY_0 + 10 * DAY_S, DAY_0 + 11 * DAY_S))
    whole = ledger_of((ALICE, 1, DAY_0, DAY_0 + 11 * DAY_S)).view()[ALICE]
    assert [(b.start, b.width_s, b.used) for b in copy.view()[ALICE]] == [(b.start, b.width_s, b.used) for b in whole]


_spans = st.lists(
    st.tuples(
        st.sampled_from([ALICE, BOB]),
        st.integers(1, 64_000),
        st.integers(0, 20 * DAY_S),
        st.integers(1, 5 * DAY_S),
    ).map(lambda span: (span[0], span[1], DAY_0 + span[2], DAY_0 + span[2] + span[3])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(_spans, st.randoms(use_true_random=False))
def test_the_order_of_charges_does_not_matter(
    spans: list[tuple[Account, int, float, float]], shuffled: random.Random
) -> None:
    one = ledger_of(*spans)
    charges = [c for account, units, since, until in spans for c in charges_for(account, {"cpu": units}, since, until)]
    shuffled.shuffle(charges)
    other = UsageLedger()
    for charge in charges:
        other.add([charge])
        if shuffled.random() < 0.02:
            other.view()
    assert one.view().keys() == other.view().keys()
    for account, usage in one.view().items():
        seen = other.view()[account]
        assert [(b.start, b.width_s) for b in seen] == [(b.start, b.width_s) for b in usage]
        assert [b.used["cpu"] for b in seen] == pytest.approx([b.used["cpu"] for b in usage])


@settings(max_examples=40, deadline=None)
@given(_spans, st.sampled_from([24, 100, 168, 672]))
def test_buckets_are_near_the_integral(spans: list[tuple[Account, int, float, float]], half_life_h: int) -> None:
    """What buckets of hours and days lose is little, for half-lives of a day and more."""
    ledger, now = ledger_of(*spans), DAY_0 + 25.0 * DAY_S
    for account, usage in ledger.view().items():
        half_life_s = float(half_life_h * HOUR_S)
        expected = exactly(spans, account, now, half_life_s)
        assert decayed(usage, now, half_life_s)["cpu"] == pytest.approx(
            expected, rel=0.3 if half_life_h == 24 else 0.09
        )


def test_the_weight_of_a_bucket_is_the_mean_over_it() -> None:
    bucket = Bucket(DAY_0, DAY_S, {"cpu": 1.0})
    now, half_life_s = DAY_0 + 3.0 * DAY_S, 2.0 * DAY_S
    steps = [2.0 ** (-(now - DAY_0 - second) / half_life_s) for second in range(30, DAY_S, 60)]
    assert bucket.weight(now, half_life_s) == pytest.approx(sum(steps) / len(steps), rel=1e-6)

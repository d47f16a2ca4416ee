"""Quotas: who is counted where, and what is too much."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.quotas import Limits, Scope, ScopeKind, Tally, Use, breach_of, scopes_of
from backendai_ray.core.slots import ResourceSlots
from backendai_ray.records import decode, encode


@dataclass(frozen=True)
class Someone:
    access_key: AccessKey = field(default_factory=lambda: AccessKey("AK"))
    user: str = "alice"
    project: str = "ml"
    domain: str = "default"


KEYPAIR, USER = Scope(ScopeKind.KEYPAIR, "AK"), Scope(ScopeKind.USER, "alice")
PROJECT, DOMAIN = Scope(ScopeKind.PROJECT, "default/ml"), Scope(ScopeKind.DOMAIN, "default")


def test_everything_is_in_four_scopes_from_the_narrowest_on() -> None:
    assert scopes_of(Someone()) == (KEYPAIR, USER, PROJECT, DOMAIN)
    assert scopes_of(Someone(user="")) == (KEYPAIR, PROJECT, DOMAIN)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({USER: Limits(slots={"cpu": 4000})}, "asks for cpu 2; the quota of user alice allows 4, and 3 are in use"),
        ({PROJECT: Limits(slots={"cpu": 1000})}, "asks for cpu 2, and the quota of project default/ml allows 1 in all"),
        ({DOMAIN: Limits(slots={"gpu": 0})}, "asks for gpu 1, and the quota of domain default allows 0 in all"),
        ({KEYPAIR: Limits(sessions=1)}, "the quota of keypair AK allows 1 sessions at a time, and 1 hold resources"),
        ({DOMAIN: Limits(slots={"cpu": 5000, "gpu": 1000}, sessions=2)}, None),
        ({USER: Limits(pending=0)}, None),
        ({Scope(ScopeKind.USER, "bob"): Limits(sessions=0)}, None),
    ],
)
def test_what_is_too_much_is_said(limits: dict[Scope, Limits], said: str | None) -> None:
    asked = ResourceSlots({"cpu": 2000, "gpu": 1000})
    breach = breach_of(Someone(), asked, limits, lambda _: Use({"cpu": 3000}, 1))
    assert (None if breach is None else str(breach)) == said


def test_no_limit_is_no_quota_and_zero_is_one() -> None:
    assert not Limits()
    assert Limits(slots={"gpu": 0})
    assert Limits(pending=0)
    assert decode(encode(Limits(slots={"gpu": 0}, sessions=3)), Limits) == Limits(slots={"gpu": 0}, sessions=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.sampled_from(["alice", "bob"])), max_size=30))
def test_a_tally_is_the_sum_of_what_is_held(moves: list[tuple[bool, int, str]]) -> None:
    """Kernels come and go, some twice: the tally is always the sum over those that are there."""
    tally, there = Tally(), dict[KernelId, str]()
    for comes, number, user in moves:
        kernel_id = KernelId(f"k{number}")
        if comes:
            tally.hold(
                kernel_id, SessionId(f"s{number // 2}"), Someone(user=user), ResourceSlots({"cpu": 1000 + number})
            )
            there.setdefault(kernel_id, user)
        else:
            tally.free(kernel_id)
            there.pop(kernel_id, None)
    for user in ("alice", "bob"):
        own = [k for k, whose in there.items() if whose == user]
        cpu = sum(1000 + int(k[1:]) for k in own)
        expected = Use({"cpu": cpu} if cpu else {}, len({int(k[1:]) // 2 for k in own}))
        assert tally.used(Scope(ScopeKind.USER, user)) == expected
    assert set(tally.kernels()) == there.keys()

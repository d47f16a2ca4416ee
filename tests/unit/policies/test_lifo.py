"""The order in which lifo starts sessions."""

from __future__ import annotations

from policies.lifo import LifoPolicy
from policies.selection import Concentrated
from policies.testing import PolicyConformance, make_node, make_session, make_snapshot


class TestLifo(PolicyConformance):
    work_conserving = True
    max_examples = 25

    def make_policy(self) -> LifoPolicy:
        return LifoPolicy(selection=Concentrated())


class TestLifoNotStrict(PolicyConformance):
    work_conserving, strict = True, False
    max_examples = 15

    def make_policy(self) -> LifoPolicy:
        return LifoPolicy(selection=Concentrated(), strict=False)


def test_the_last_of_the_highest_priority_starts_first() -> None:
    pending = [
        make_session("old", submitted_at=1),
        make_session("urgent", submitted_at=2, priority=20),
        make_session("urgent-too", submitted_at=3, priority=20),
        make_session("new", submitted_at=4),
    ]
    plan = LifoPolicy(selection=Concentrated()).decide(make_snapshot([make_node("n0")], pending))
    assert [placement.session_id for placement in plan.placements] == ["urgent-too", "urgent", "new", "old"]

"""Who waits for whom."""

from __future__ import annotations

from actors.manager.dependencies import Waiting
from backendai_ray.core.ids import SessionId


def ids(*names: str) -> tuple[SessionId, ...]:
    return tuple(SessionId(name) for name in names)


def test_all_that_waits_comes_before_what_it_waits_for() -> None:
    """Also where ways part and meet again, forty times: each is looked at once."""
    waiting = Waiting()
    above = ids("root")
    for level in range(40):
        layer = ids(f"a{level}", f"b{level}")
        for session in layer:
            waiting.add(session, above)
        above = layer
    order = waiting.all_dependents(SessionId("root"))
    assert len(order) == len(set(order)) == 80
    levels = [int(session[1:]) for session in order]
    assert all(order.index(SessionId(f"a{n + 1}")) < order.index(SessionId(f"a{n}")) for n in range(39))
    assert set(levels[:2]) <= {38, 39}


def test_what_is_forgotten_waits_for_nothing() -> None:
    waiting = Waiting()
    waiting.add(SessionId("b"), ids("a"))
    waiting.add(SessionId("c"), ids("b"))
    waiting.forget(SessionId("b"))
    assert waiting.unmet(SessionId("b")) == ()
    assert waiting.dependents(SessionId("a")) == []
    assert waiting.all_dependents(SessionId("a")) == []
    assert waiting.unmet(SessionId("c")) == ids("b")

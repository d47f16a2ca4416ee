"""Which images spares are made of, and that a spare is handed to one kernel only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.backends.base import KernelFolders, Launch, Life, PreparedImage, Spare
from actors.agent.demand import FORGOTTEN, HALF_LIFE_S, Demand
from actors.agent.devices.base import Grant
from actors.agent.spares import SparePool
from actors.agent.testing.builders import kernel_spec_of
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import EngineUnavailable
from backendai_ray.core.ids import KernelId

PYTHON = PreparedImage(reference="python", id="sha256:p", python="/usr/bin/python3")
R = PreparedImage(reference="r-base", id="sha256:r", python="/usr/bin/python3")


class Engine:
    """Makes spares of names; may fail."""

    def __init__(self) -> None:
        self.there: dict[str, Spare] = {}
        self.lives: dict[str, str] = {}
        self.fails = False
        self.dead: set[str] = set()
        self._made = 0
        self._lock = threading.Lock()

    def fits_spare(self, launch: Launch) -> bool:
        return not launch.spec.bootstrap_script

    def make_spare(self, image: PreparedImage, uid: int) -> Spare:
        if self.fails:
            raise EngineUnavailable("the engine is away")
        with self._lock:
            self._made += 1
            name = f"spare-{self._made}"
        spare = Spare(name=name, container_id=name, image_id=image.id, reference=image.reference)
        self.there[name] = spare
        return spare

    def hand_over(self, spare: Spare, launch: Launch) -> str | None:
        if self.fails:
            raise EngineUnavailable("the engine is away")
        if spare.name in self.dead or self.there.pop(spare.name, None) is None:
            return None
        assert spare.name not in self.lives
        self.lives[spare.name] = str(launch.life)
        return spare.container_id

    def list_spares(self) -> Sequence[Spare]:
        return list(self.there.values())

    def remove_spare(self, spare: Spare) -> None:
        self.there.pop(spare.name, None)


def pool_of(engine: Engine, size: int = 2) -> SparePool:
    return SparePool(engine, size=size, uid=1000, clock=lambda: 0.0)  # type: ignore[arg-type]


def launch(image: PreparedImage = PYTHON, number: int = 0, **changes: str) -> Launch:
    spec = kernel_spec_of(Allocation(), **changes)
    return Launch(
        life=Life(kernel_id=KernelId(f"k{number}"), attempt=1, epoch=0), spec=spec, image=image,
        folders=KernelFolders(root=Path(), work=Path(), run=Path()), grant=Grant(), environ={}, pids_limit=1,
        uid=1000, output_buffer_bytes=1,
    )  # fmt: skip


def fill(pool: SparePool) -> None:
    while pool.maintain():
        pass


def test_none_are_made_before_somebody_asks() -> None:
    engine = Engine()
    pool = pool_of(engine)
    fill(pool)
    assert not engine.there
    assert pool.start(launch()) is None
    fill(pool)
    assert pool.counts() == {"python": 2}
    assert pool.start(launch()) == "spare-1"
    assert (pool.handed_over, pool.missed) == (1, 1)


def test_what_does_not_fit_is_made_the_usual_way_and_asks_for_nothing() -> None:
    engine = Engine()
    pool = pool_of(engine)
    assert pool.start(launch(bootstrap_script="true")) is None
    assert pool.start(replace(launch(), uid=0)) is None
    fill(pool)
    assert not engine.there


def test_a_pool_of_no_size_is_off() -> None:
    engine = Engine()
    pool = pool_of(engine, size=0)
    assert not pool.is_on
    assert pool.start(launch()) is None
    assert not pool.maintain()


def test_another_image_takes_over_the_places() -> None:
    engine = Engine()
    pool = pool_of(engine)
    pool.start(launch(PYTHON))
    fill(pool)
    for _ in range(5):
        pool.start(launch(R))
    fill(pool)
    assert pool.counts() == {"r-base": 2}
    assert len(engine.there) == 2


def test_a_dead_spare_is_passed_over_and_removed() -> None:
    engine = Engine()
    pool = pool_of(engine)
    pool.start(launch())
    fill(pool)
    engine.dead.add("spare-1")
    assert pool.start(launch()) == "spare-2"
    assert not engine.there


def test_an_engine_that_fails_costs_the_spares_and_nothing_else() -> None:
    engine = Engine()
    pool = pool_of(engine)
    pool.start(launch())
    fill(pool)
    engine.fails = True
    assert pool.start(launch()) is None
    assert not pool.maintain()
    engine.fails = False
    fill(pool)
    assert pool.counts() == {"python": 2}


def test_a_closed_pool_is_empty_and_stays_so() -> None:
    engine = Engine()
    pool = pool_of(engine)
    pool.start(launch())
    fill(pool)
    assert pool.close() == 2
    assert pool.start(launch()) is None
    fill(pool)
    assert not engine.there


def test_what_an_earlier_agent_left_is_removed() -> None:
    engine = Engine()
    engine.make_spare(PYTHON, 1000)
    pool = pool_of(engine)
    pool.clear_old()
    assert not engine.there


@pytest.mark.parametrize("size", [0, 2])
def test_what_comes_late_is_removed_and_what_is_ours_stays(size: int) -> None:
    engine = Engine()
    pool = pool_of(engine, size=size)
    pool.clear_old()
    pool.start(launch())
    fill(pool)
    late = engine.make_spare(PYTHON, 1000)  # as an earlier agent had asked a slow engine to
    pool.clear_unknown()
    assert late.name not in engine.there
    assert len(engine.there) == size


def test_what_is_being_handed_over_is_not_removed() -> None:
    engine = Engine()
    pool = pool_of(engine)
    pool.start(launch())
    fill(pool)
    give = engine.hand_over

    def slowly(spare: Spare, launch: Launch) -> str | None:
        pool.clear_unknown()
        assert spare.name in engine.there
        return give(spare, launch)

    engine.hand_over = slowly  # type: ignore[method-assign]
    assert pool.start(launch(number=1)) is not None


def test_no_two_kernels_get_the_same() -> None:
    engine = Engine()
    pool = pool_of(engine, size=8)
    pool.start(launch())
    fill(pool)
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda number: pool.start(launch(number=number)), range(16)))
    handed = [one for one in got if one is not None]
    assert sorted(handed) == sorted(engine.lives)
    assert len(handed) == 8


starts = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3600)), max_size=30)


@given(starts, st.integers(0, 8))
def test_places_go_to_those_asked_for_and_no_further(history: list[tuple[str, float]], places: int) -> None:
    demand = Demand()
    now = 0.0
    for image, pause in history:
        now += pause
        demand.note(image, now)
    shares = demand.shares(places, now)
    assert sum(shares.values()) == (places if history else 0)
    assert set(shares) <= {image for image, _ in history}
    if places and history:
        assert history[-1][0] in demand.shares(30, now)


def test_demand_fades() -> None:
    demand = Demand()
    demand.note("a", 0.0)
    demand.note("b", 2 * HALF_LIFE_S)
    assert demand.shares(1, 2 * HALF_LIFE_S) == {"b": 1}
    assert FORGOTTEN > 0.5**4
    assert demand.shares(2, 4 * HALF_LIFE_S) == {"b": 2}
    assert demand.shares(2, 9 * HALF_LIFE_S) == {}

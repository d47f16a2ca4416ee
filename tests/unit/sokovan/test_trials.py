"""Everything fails, on virtual time, and nothing is lost, doubled or stuck. More seeds: `python -m bench faults`."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from actors.testing.processes import Process, own_tasks
from actors.testing.trial import run_trial
from actors.testing.virtual_time import StandsStill, run_virtually
from actors.testing.wire import Weather, Wire
from backendai_ray.core.errors import InternalError, Unavailable

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_trial_leaves_nothing_behind(seed: int) -> None:
    verdict = run_trial(seed, sessions=8)
    assert not verdict.violations, f"python -m bench faults --seed {seed} --sessions 8: {verdict}"
    assert verdict.commits > 0


def test_a_seed_takes_the_same_steps_again() -> None:
    one, two, other = run_trial(7), run_trial(7), run_trial(8)
    assert one == two
    assert one.digest != other.digest


# ── what trials stand on ──────────────────────────────────────────────────────────────────────────────────────────


def test_time_passes_only_when_nothing_happens() -> None:
    order: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(wait("late", 86400.0), wait("soon", 0.5), asyncio.to_thread(lambda: None))

    run_virtually(main())
    assert order == [("soon", 0.5), ("late", 86400.0)]


def test_who_waits_for_nothing_is_told() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StandsStill, match="nothing is scheduled"):
        run_virtually(main())


def test_a_killed_process_takes_all_its_tasks_with_it() -> None:
    done: list[str] = []

    async def child(name: str) -> None:
        await asyncio.sleep(5)
        done.append(name)

    async def parent() -> None:
        asyncio.create_task(child("of the dead"))  # noqa: RUF006 - the process keeps it
        await asyncio.sleep(60)

    async def main() -> None:
        own_tasks(asyncio.get_running_loop())
        process, other = Process("one"), Process("other")
        process.spawn(parent())
        other.spawn(child("of the living"))
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(10)

    run_virtually(main())
    assert done == ["of the living"]


class Actor:
    def __init__(self) -> None:
        self.calls = 0

    async def count(self) -> int:
        self.calls += 1
        return self.calls

    async def die(self) -> None:
        await asyncio.sleep(3600)

    async def stumble(self) -> None:
        raise KeyError("x")


def on_a_wire(weather: Weather, *methods: str, kill_after_s: float = 1e9) -> tuple[Actor, list[str], list[str]]:
    """Call the methods one after the other and return what they said."""
    actor, said, reported = Actor(), list[str](), list[str]()

    async def main() -> None:
        own_tasks(asyncio.get_running_loop())
        wire, server = Wire(Random(0), reported.append), Process("server")
        wire.weather = weather
        wire.listen("server", server, actor)
        asyncio.get_running_loop().call_later(kill_after_s, server.kill)
        peer = wire.peer(Process("caller"), "server")
        for method in methods:
            try:
                said.append(str(await getattr(peer, method)()))
            except (Unavailable, InternalError) as exc:
                said.append(exc.message)
        await asyncio.sleep(60)

    run_virtually(main())
    return actor, said, reported


def test_calls_that_are_lost_and_calls_whose_answer_is() -> None:
    nothing = {"lost": 0.0, "refused": 0.0, "unanswered": 0.0, "doubled": 0.0, "slow": 0.0}
    actor, said, _ = on_a_wire(Weather(**{**nothing, "lost": 1.0}), "count")
    assert (actor.calls, said) == (0, ["server did not answer count in time"])
    actor, said, _ = on_a_wire(Weather(**{**nothing, "unanswered": 1.0}), "count")
    assert (actor.calls, said) == (1, ["the answer of server to count was lost"])
    actor, said, _ = on_a_wire(Weather(**{**nothing, "doubled": 1.0}), "count")
    assert (actor.calls, said) == (2, ["1"])
    _, said, _ = on_a_wire(Weather(**nothing), "die", "count", kill_after_s=5)
    assert said == ["server died while it carried out die", "server is not reachable"]
    _, said, reported = on_a_wire(Weather(**nothing), "stumble")
    assert reported == ["server.stumble raised KeyError('x')"]

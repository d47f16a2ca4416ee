"""Nodes that fail while a trace is replayed, and what is drawn of it over time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots
from policies.backfill import BackfillPolicy
from policies.drf import DrfPolicy
from policies.fifo import FifoPolicy
from policies.selection import Concentrated
from policies.simulator.engine import History, simulate
from policies.simulator.faults import Faults, Outage, WhenLost, read_outages
from policies.simulator.jobs import Job, make_job
from policies.simulator.metrics import summarise
from policies.simulator.series import series_of
from policies.testing import make_node

NODES = [make_node("n0", cpu=4, gpus=4), make_node("n1", cpu=4, gpus=4)]


def job(name: str, at: float, duration: float, gpus: int = 4, *, size: int = 1, owner: str = "A") -> Job:
    slots = ResourceSlots.parse({"cpu": 1, "cuda.device": gpus})
    mode = ClusterMode.MULTI_NODE
    return make_job(name, slots, submitted_at=at, duration_s=duration, size=size, owner=owner, mode=mode)


def out(node: str, at: float, until: float = math.inf) -> Outage:
    return Outage(at, AgentId(node), until)


def replay(*jobs: Job, faults: Faults) -> History:
    return simulate(NODES, jobs, FifoPolicy(selection=Concentrated()), checked=True, faults=faults)


def runs(history: History) -> list[tuple[str, float, float, bool]]:
    return [(str(run.session_id), run.started_at, run.ended_at, run.is_lost) for run in history.runs]


def test_a_session_on_a_failed_node_starts_anew_elsewhere() -> None:
    history = replay(job("a", 0, 10), faults=Faults([out("n0", 4)]))
    assert runs(history) == [("a", 0, 4, True), ("a", 4, 14, False)]
    figures = summarise(history)
    assert (figures.lost_runs, figures.failed, figures.wait_mean_s, figures.jct_mean_s) == (1, 0, 0, 14)
    assert figures.wasted == pytest.approx(4 * 4 / (8 * 14))
    assert figures.out == pytest.approx(4 * 10 / (8 * 14))


def test_a_gang_is_lost_with_one_of_its_nodes_and_waits_for_it() -> None:
    history = replay(job("g", 0, 10, size=2), job("b", 5, 1), faults=Faults([out("n1", 4, 20)]))
    assert runs(history) == [("g", 0, 4, True), ("b", 5, 6, False), ("g", 20, 30, False)]


def test_lost_sessions_fail_when_asked() -> None:
    history = replay(job("a", 0, 10), faults=Faults([out("n0", 4)], when_lost=WhenLost.FAIL))
    figures = summarise(history)
    assert runs(history) == [("a", 0, 4, True)]
    assert (figures.failed, figures.never_started, figures.makespan_s) == (1, 0, 4)


def test_one_that_ends_at_the_moment_of_the_failure_has_ended() -> None:
    assert runs(replay(job("a", 0, 4), faults=Faults([out("n0", 4)]))) == [("a", 0, 4, False)]


def test_a_node_is_back_when_the_last_of_its_outages_is_over() -> None:
    outages = [out("n0", 0, 10), out("n0", 5, 20), out("n1", 0)]
    assert runs(replay(job("a", 1, 1), faults=Faults(outages))) == [("a", 20, 21, False)]


def test_nothing_waits_for_a_node_that_never_comes_back() -> None:
    figures = summarise(replay(job("a", 1, 1), faults=Faults([out("n0", 0), out("n1", 0)])))
    assert (figures.never_started, figures.makespan_s) == (1, 0)


def test_who_needs_more_nodes_than_are_ever_up_together_is_given_up() -> None:
    """Failures come for ever; the simulation must not."""
    faults = Faults([out("n1", 0)], mtbf_s=10, mttr_s=10, seed=1)
    assert summarise(replay(job("g", 1, 1, size=2), faults=faults)).never_started == 1


def test_who_runs_longer_than_nodes_last_is_given_up() -> None:
    figures = summarise(replay(job("a", 0, 1e6), faults=Faults(mtbf_s=10, mttr_s=1, most_losses=5)))
    assert (figures.failed, figures.lost_runs) == (1, 5)


def test_another_node_changes_nothing_for_the_rest() -> None:
    def of(count: int) -> list[Outage]:
        drawn = Faults(mtbf_s=100, mttr_s=10, seed=3).of([make_node(f"n{i}") for i in range(count)], 0)
        found = [next(drawn) for _ in range(30)]
        return [outage for outage in found if outage.agent_id == "n0"]

    assert of(3)[:5] == of(2)[:5]


_jobs = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(1, 4), st.integers(1, 2), st.sampled_from("AB")),
    max_size=8,
).map(lambda rows: [job(f"j{i}", at, run, gpus, size=k, owner=who) for i, (at, run, gpus, k, who) in enumerate(rows)])
_outages = st.lists(
    st.tuples(st.sampled_from(["n0", "n1"]), st.integers(0, 30), st.integers(0, 20)).map(
        lambda one: out(one[0], one[1], one[1] + one[2])
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(_jobs, _outages, st.sampled_from([FifoPolicy, DrfPolicy, BackfillPolicy]), st.sampled_from(list(WhenLost)))
def test_whatever_fails_every_job_is_done_once_or_was_lost(
    jobs: list[Job], outages: list[Outage], policy: type[FifoPolicy | DrfPolicy | BackfillPolicy], when_lost: WhenLost
) -> None:
    faults = Faults(outages, when_lost=when_lost)
    history = simulate(NODES, jobs, policy(selection=Concentrated()), checked=True, faults=faults)
    done = [run.session_id for run in history.runs if not run.is_lost]
    lost = {run.session_id for run in history.runs if run.is_lost}
    assert len(done) == len(set(done))
    everyone = {one.session.id for one in jobs}
    if when_lost is WhenLost.REQUEUE:
        assert set(done) == everyone, "all outages end, and everybody fits"
    else:
        assert not lost & set(done)
        assert lost | set(done) == everyone


def test_a_file_of_outages() -> None:
    lines = ['{"node": "n0", "at": 5, "duration": 2.5}\n', '{"node": "n1", "at": 7}\n']
    assert read_outages("f", lines, NODES) == [out("n0", 5, 7.5), out("n1", 7)]
    for line, words in (
        ('{"node": "x", "at": 1}', "f, line 1: node: there is no node x"),
        ('{"node": "n0"}', "f, line 1: at: is missing"),
        ('{"node": "n0", "at": 1, "duration": -1}', "f, line 1: duration: '-1'"),
        ('{"node": "n0", "when": 1}', "f, line 1: when: is not known"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            read_outages("f", [line], NODES)


def test_a_history_over_time() -> None:
    faults = Faults([out("n1", 20, 30)])
    history = replay(job("a", 0, 10), job("b", 0, 10, owner="B"), job("c", 5, 30, gpus=2, owner="C"), faults=faults)
    series = series_of("fifo", history, until_s=40, spans=8)
    assert series.at_s.tolist() == [2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 32.5, 37.5]
    assert series.utilisation.tolist() == pytest.approx([1, 1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
    assert series.fragmentation.tolist() == pytest.approx([0, 0, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
    assert series.out.tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0.5, 0, 0])
    assert series.waiting.tolist() == pytest.approx([0, 1, 0, 0, 0, 0, 0, 0])
    assert series.jain.tolist() == pytest.approx([1, 2 / 3, 1, 1, 1, 1, 1, 1])
    assert (series.waits_s.min(), series.waits_s.max()) == (0, 5)


def test_nothing_over_time() -> None:
    series = series_of("fifo", replay(faults=Faults()), until_s=0)
    assert not series.utilisation.any()
    assert np.isnan(series.jain).all()

"""The benches of the scheduler at scale, in small."""

from __future__ import annotations

import argparse

import pytest

from backendai_ray.core.allocator import DeviceMap
from bench import kueue, throughput, worlds
from bench.figures import Report


def figures(bench: object, *arguments: str) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    bench.add_options(parser)  # type: ignore[attr-defined]
    report = Report()
    bench.run(report, parser.parse_args(arguments))  # type: ignore[attr-defined]
    return {figure.name: figure.median for figure in report.figures}


def test_throughput_measures_passes_decisions_and_releases() -> None:
    sizes = {"nodes": 8, "pending": 8, "passes": 1, "agents": 4, "sessions": 6, "rounds": 1, "releases": 2}
    got = figures(throughput, *(word for name, size in sizes.items() for word in (f"--{name}", str(size))))
    names = {name.removeprefix("throughput.") for name in got}
    assert {"nodes8.pass.s", "nodes4.decisions_per_s", "nodes4.running_per_s", "release_to_start.ms"} < names
    assert all(value > 0 for value in got.values())


def test_the_kueue_scenario_is_the_published_one() -> None:
    workloads = list(kueue._workloads(1.0))
    assert len(workloads) == 15_000
    work = sum(one.kind.units * one.kind.runs_s for one in workloads)
    assert work / (kueue.COHORTS * kueue.QUEUES * kueue.QUOTA) == pytest.approx(66)


def test_kueue_runs_every_workload() -> None:
    got = figures(kueue, "--part", "0.002")
    assert got["kueue.makespan.s"] > 1.0, "a large one runs for a second"
    assert set(got) == {"kueue.makespan.s", "kueue.small.wait.s", "kueue.medium.wait.s", "kueue.large.wait.s"}


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figures(kueue, "--part", "2")
    assert "--part" in capsys.readouterr().err


def test_a_node_holds_what_the_worlds_ask_for() -> None:
    assert DeviceMap(worlds.devices()).fits(worlds.a_whole_node())

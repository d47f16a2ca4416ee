"""The benches in virtual time."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import gang, philly
from bench.figures import Report


def figures(bench: object, *arguments: str) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    bench.add_options(parser)  # type: ignore[attr-defined]
    report = Report()
    bench.run(report, parser.parse_args(arguments))  # type: ignore[attr-defined]
    return {figure.name: figure.median for figure in report.figures}


@pytest.mark.parametrize("policy", ["fifo", "lifo", "drf"])
def test_gangs_fill_the_cluster_in_nine_waves(policy: str) -> None:
    assert sum(number for number, _ in gang.GANGS) == 53
    assert sum(number * size for number, size in gang.GANGS) == 288
    assert figures(gang, "--policy", policy) == {"gang.waves": 9, "gang.occupancy": pytest.approx(100)}


def chosen(*policies: str) -> list[str]:
    return [argument for policy in policies for argument in ("--policy", policy)]


def test_philly(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "timestamp,duration,num_gpus,gpu_time,cluster\n"
        "2017-10-09 07:00:00,1200,8,9600,vc1\n"
        "2017-10-09 07:00:00,600,8,4800,vc1\n"
        "2017-10-09 07:00:00,600,8,4800,vc1\n"
        "2017-10-09 07:00:00,600,8,4800,vc2\n"
    )
    got = figures(philly, "--trace", str(trace), "--nodes", "2", *chosen("fifo", "drf", "fair-share", "priority"))
    assert (got["philly.fifo.wait.s"], got["philly.fifo.jct.s"]) == (450, 1200)
    assert got["philly.fifo.jain"] < got["philly.drf.jain"] == got["philly.fair-share.jain"]
    assert got["philly.priority.high.wait.s"] == 0


def test_errors_end_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figures(philly, "--trace", str(tmp_path / "none.csv"))
    assert "none.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        figures(gang, "--policy", "lottery")
    assert "'lottery' is not installed" in capsys.readouterr().err

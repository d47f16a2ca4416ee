"""The allocator's bench: its figures, and what it does where the original is not to be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backendai_ray.core.device_sets import BestLinked
from backendai_ray.core.topology import Layout
from bench import alloc_streams, original
from bench.__main__ import main
from bench.nvidia_picks import DGX1_VOLTA, GPU


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, float]:
    file = tmp_path / "figures.json"
    quick = ["--rounds", "1", "--seconds", "0.001", "--streams", "1", "--requests", "20", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench", "alloc", *quick, *arguments])
    assert main() == 0
    return {figure["name"]: figure["median"] for figure in json.loads(file.read_text())}


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run(tmp_path, monkeypatch, "--original", "none")
    assert figures["alloc.dgx1.worse"] == figures["alloc.dgx1.numa.worse"] == 0
    assert figures["alloc.gpu16.ms"] > 0
    rates = {name for name in figures if name.endswith(".per_s")}
    assert len(rates) == 6
    assert not [name for name in figures if name.endswith(".ratio")]


def test_an_interpreter_without_the_original_costs_the_ratios_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    figures = run(tmp_path, monkeypatch, "--original", sys.executable)
    assert figures["alloc.gpu8_discrete_2.fill.per_s"] > 0
    assert not [name for name in figures if name.endswith(".ratio")]
    said = capfd.readouterr().err
    assert "No module named 'ai'" in said
    assert "alloc: no ratios" in said


def test_no_python_that_it_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(original.shutil, "which", lambda _name: None)
    with pytest.raises(original.OriginalMissing, match=r"needs python3\.11"):
        original.find_python("")
    with pytest.raises(original.OriginalMissing, match="cannot be run"), original.OriginalAllocator(tmp_path / "no"):
        pass


def test_streams_are_the_same_each_time_and_ours_is_no_worse_than_first_free() -> None:
    layout = Layout.of(DGX1_VOLTA.devices(numa=True)).slots[GPU]
    stream = alloc_streams.make_stream(1, 200, 8)
    assert stream == alloc_streams.make_stream(1, 200, 8)
    assert {request.gpus for request in stream} == set(alloc_streams.SIZES)
    best = BestLinked()
    ours = alloc_streams.serve(layout, stream, lambda layout, free, count: best.choose(layout, free, count, ()))
    first = alloc_streams.serve(layout, stream, alloc_streams.first_free)
    one_node = alloc_streams.serve(layout, stream, alloc_streams.single_numa_node)
    assert ours.links > first.links
    assert ours.one_node > first.one_node
    assert one_node.one_node == 1
    assert 0 < ours.rejected < 1

"""The allocator's bench: its figures, and what it does where the original is not to be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import original
from bench.__main__ import main


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, float]:
    file = tmp_path / "figures.json"
    quick = ["--rounds", "1", "--seconds", "0.001", "--json", str(file)]
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

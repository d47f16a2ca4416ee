"""``bai simulate``: what it prints, and what it says of files it cannot use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Bai

NODES = '{"name": "n", "slots": {"cpu": 2, "mem": "4g"}}\n'
TRACE = "".join(
    json.dumps({"name": f"j{i}", "submitted_at": 0, "duration": 60, "slots": {"cpu": 1}, "owner": "AB"[i % 2]}) + "\n"
    for i in range(4)
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "nodes.jsonl").write_text(NODES)
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return "--nodes", str(tmp_path / "nodes.jsonl"), "--trace", str(tmp_path / "trace.jsonl")


def test_policies_side_by_side(bai: Bai, files: tuple[str, ...]) -> None:
    outcome = bai("simulate", *files, "--policy", "fifo", "--policy", "drf/dispersed")
    assert outcome.code == 0, outcome.err
    heading, _, *lines = outcome.out.splitlines()
    assert heading.split() == ["FIGURE", "fifo", "drf/dispersed"]
    figures = {line[:15].strip(): line[15:].split("  ")[0].strip() for line in lines if line.strip()}
    assert figures == {
        "jobs": "4",
        "never started": "0",
        "makespan": "2m00s",
        "in use": "100.0 %",
        "in pieces": "0.0 %",
        "wait mean": "30s",
        "wait median": "30s",
        "wait p95": "1m00s",
        "wait max": "1m00s",
        "JCT mean": "1m30s",
        "JCT median": "1m30s",
        "JCT p95": "2m00s",
        "slowdown": "1.50",
        "Jain": "1.000",
    }


def test_nodes_fail_as_a_file_says(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "faults.jsonl").write_text('{"node": "n", "at": 30, "duration": 30}\n')
    arguments = ("simulate", *files, "--policy", "fifo", "--faults", str(tmp_path / "faults.jsonl"))
    [row] = json.loads(bai(*arguments, "--json").out)
    assert (row["lost_runs"], row["failed"], row["makespan_s"], row["out"]) == (2, 0, 180, 30 / 180)
    outcome = bai(*arguments, "--when-lost", "fail")
    assert [line.split()[-1] for line in outcome.out.splitlines() if line.startswith(("failed ", "lost"))] == [
        "2",
        "2",
        "%",
    ]


def test_nodes_fail_at_random_alike_for_one_seed(bai: Bai, files: tuple[str, ...]) -> None:
    def once(seed: int) -> str:
        return bai(
            "simulate", *files, "--policy", "fifo", "--mtbf", "100", "--mttr", "10", "--seed", str(seed), "--json"
        ).out

    assert once(1) == once(1) != once(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mtbf", "0"), "mtbf: 0 is no time above 0; give seconds"),
        (("--mtbf", "9", "--mttr", "nan"), "mttr: nan is no time above 0"),
        (("--plot", "x.gif"), "plot: x.gif: the name must end in one of .html, .png, .svg, .pdf"),
        (("--plot", "none/x.png"), "there is no folder none; make it first"),
    ],
)
def test_options_that_cannot_be(bai: Bai, files: tuple[str, ...], options: tuple[str, ...], words: str) -> None:
    outcome = bai("simulate", *files, "--policy", "fifo", *options)
    assert outcome.code == 2
    assert words in outcome.err


def test_options_of_a_policy(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    urgent = {"name": "u", "submitted_at": 30, "duration": 60, "slots": {"cpu": 2}, "owner": "C", "priority": 50}
    with (tmp_path / "trace.jsonl").open("a") as file:
        file.write(json.dumps(urgent) + "\n")
    preempting = 'fifo/dispersed:{"preemption": {"scope": "group", "min_runtime_s": 0}}'
    outcome = bai("simulate", *files, "--policy", "fifo", "--policy", preempting)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("preempted")]
    assert line.split() == ["preempted", "0", "2"]
    for wrong, words in (("{", "no JSON"), ("[]", "no JSON object"), ('{"preemption": 1}', "options.preemption")):
        assert words in bai("simulate", *files, "--policy", f"fifo:{wrong}").err


def test_plots(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    page, picture = tmp_path / "p.html", tmp_path / "p.png"
    options = ("--policy", "fifo", "--policy", "lifo", "--plot", str(page), "--plot", str(picture))
    assert bai("simulate", *files, *options).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "<td>wait p95</td>" in text
    assert "Fairness over the owners" in text
    assert not re.search(r'(?:src|href)="(?!#)', text), "the page needs something beside itself"


def test_json(bai: Bai, files: tuple[str, ...]) -> None:
    [row] = json.loads(bai("simulate", *files, "--policy", "lifo", "--json").out)
    assert (row["policy"], row["utilisation"], row["wait_mean_s"], row["jobs"]) == ("lifo", 1.0, 30.0, 4)


def test_errors_name_the_file_the_line_and_the_field(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(TRACE + '{"name": "bad", "slots": {"cpu": 1}}\n')
    outcome = bai("simulate", *files, "--policy", "fifo")
    assert outcome.code == 2
    assert "trace.jsonl, line 5: submitted_at: is missing" in outcome.err


def test_a_policy_that_is_not_there_is_said_before_anything_is_read(bai: Bai) -> None:
    outcome = bai("simulate", "--nodes", "none", "--trace", "none", "--policy", "lottery")
    assert outcome.code == 2
    assert "'lottery' is not installed; there are: backfill, drf, " in outcome.err


def test_files_that_cannot_be_read(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe\x00")
    outcome = bai("simulate", *files, "--policy", "fifo")
    assert (outcome.code, "is no text in UTF-8" in outcome.err) == (2, True)
    (tmp_path / "trace.jsonl").unlink()
    outcome = bai("simulate", *files, "--policy", "fifo")
    assert (outcome.code, "cannot be read: No such file" in outcome.err) == (2, True)

"""``bai simulate``: what it prints, and what it says of files it cannot use."""

from __future__ import annotations

import json
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
    outcome = bai("simulate", *files, "--policy", "fifo", "--policy", "drf")
    assert outcome.code == 0, outcome.err
    heading, _, fifo, drf, *_ = outcome.out.splitlines()
    assert "POLICY" in heading
    assert "JAIN" in heading
    assert fifo.split() == [
        "fifo",
        "4",
        "0",
        "2m00s",
        "100.0",
        "%",
        "0.0",
        "%",
        "30s",
        "30s",
        "1m00s",
        "1m30s",
        "1.50",
        "1.000",
    ]
    assert drf.split()[0] == "drf"


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
    assert "'lottery' is not installed; there are: backfill, drf, fifo, lifo" in outcome.err


def test_files_that_cannot_be_read(bai: Bai, files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_bytes(b"\xff\xfe\x00")
    outcome = bai("simulate", *files, "--policy", "fifo")
    assert (outcome.code, "is no text in UTF-8" in outcome.err) == (2, True)
    (tmp_path / "trace.jsonl").unlink()
    outcome = bai("simulate", *files, "--policy", "fifo")
    assert (outcome.code, "cannot be read: No such file" in outcome.err) == (2, True)

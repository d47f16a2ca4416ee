"""``bai`` as a process of its own, against a running cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backendai_ray.client import Client
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.blackbox]
Bai = Callable[..., "subprocess.Popen[str]"]
SMALL = ["-r", "cpu=0.5", "-r", "mem=256m"]


@pytest.fixture
def bai(live_endpoint: Mapping[str, str], tmp_path: Path) -> Bai:
    """Start ``bai`` with arguments, in a folder of its own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from backendai_ray.cli.main import main; main()", *arguments],
            env={**os.environ, **live_endpoint},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process: subprocess.Popen[str], typed: str = "") -> tuple[int, str, str]:
    out, err = process.communicate(typed, timeout=60)
    return process.returncode, out, err


@pytest.fixture
def sessions_left(live_endpoint: Mapping[str, str]) -> Callable[[], set[str]]:
    """Return the names of living sessions."""

    def names() -> set[str]:
        with Client(*(live_endpoint[f"BACKEND_{n}"] for n in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))) as client:
            return {info.name for info in client.sessions.iterate()}

    return names


def test_run_a_program_on_its_data(bai: Bai, tmp_path: Path, sessions_left: Callable[[], set[str]]) -> None:
    before = sessions_left()
    (tmp_path / "sum.py").write_text("import sys\nprint(sum(map(int, open('n.txt'))))\nsys.exit(3)")
    (tmp_path / "n.txt").write_text("1\n2\n3\n")
    assert ended(bai("run", "python", "sum.py", "n.txt", *SMALL))[:2] == (3, "6\n")
    assert sessions_left() <= before


def test_run_answers_from_standard_input(bai: Bai) -> None:
    code, out, _ = ended(bai("run", "python", "-c", "print('hello', input('who? '))", *SMALL), "Ada\n")
    assert (code, "hello Ada" in out) == (0, True)


def test_a_session_from_a_shell(bai: Bai, tmp_path: Path) -> None:
    code, out, err = ended(bai("start", "python", "-t", "from-shell", *SMALL, "--json"))
    assert code == 0, err
    session = json.loads(out)["id"]
    assert ended(bai("exec", session, "-c", "x = 41"))[0] == 0
    assert ended(bai("exec", "from-shell", "-c", "print(x + 1)"))[:2] == (0, "42\n")
    (tmp_path / "a.txt").write_text("a")
    assert ended(bai("upload", "from-shell", "a.txt", "--to", "in/b.txt"))[0] == 0
    assert ended(bai("exec", "from-shell", "--shell", "cat in/b.txt; exit 4"))[:2] == (4, "a")
    assert "b.txt" in ended(bai("ls", "from-shell", "in"))[1]
    assert "from-shell" in ended(bai("ps"))[1]
    code, out, _ = ended(bai("shell", "from-shell"), "echo $((40+2))-shown; exit\n")
    assert (code, "42-shown" in out) == (0, True)
    assert ended(bai("rm", "from-shell"))[:2] == (0, "Ended: from-shell\n")
    assert "TERMINATED" in ended(bai("history", session))[1]


def test_ctrl_c_interrupts_the_program_and_then_the_command(bai: Bai, sessions_left: Callable[[], set[str]]) -> None:
    before = sessions_left()
    program = """
import time
for _ in range(2):
    try:
        print('begun', flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print('caught', flush=True)
"""
    process = bai("run", "python", "-c", program, *SMALL)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "caught\n"
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130, err
    wait_until(lambda: sessions_left() <= before, timeout_s=20)


def test_what_a_session_and_its_node_use(bai: Bai, live_endpoint: Mapping[str, str]) -> None:
    assert ended(bai("start", "python", "-t", "measured", *SMALL))[0] == 0
    told: list[dict[str, Any]] = []

    def is_measured() -> bool:
        told[:] = json.loads(ended(bai("info", "measured", "--json"))[1])["usage"]
        return bool(told) and told[0]["measured_at"] is not None

    wait_until(is_measured, timeout_s=30)
    (kernel,) = told
    assert (kernel["cpu_limit"], kernel["memory_limit"], kernel["advisory"]) == (0.5, 256 * 2**20, [])
    node = kernel["agent_id"]
    code, drawing, err = ended(bai("node", "show", node))
    assert code == 0, err
    assert "measured 0.5" in drawing
    assert "  in use: " in drawing
    with urllib.request.urlopen(f"{live_endpoint['BACKEND_ENDPOINT']}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert f'backendai_node_up{{node="{node}",group="default"}} 1' in metrics
    assert 'session="measured"' in metrics
    assert ended(bai("rm", "measured"))[0] == 0


def test_batch(bai: Bai) -> None:
    code, out, err = ended(bai("run", "python", "--batch", "--exec", "echo from-batch; exit 5", *SMALL))
    assert (code, out) == (5, "from-batch\n"), err


def test_errors_are_a_line_and_a_code(bai: Bai) -> None:
    code, out, err = ended(bai("info", "no-such-session"))
    assert (code, out, err.count("\n")) == (3, "", 1)
    code, _, err = ended(bai("run", "python", "-c", "1", "-r", "mem=900t"))
    assert (code, err.count("\n")) == (125, 1)

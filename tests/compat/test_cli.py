"""``backend.ai`` on the command line."""

from __future__ import annotations

import json
import re
from secrets import token_hex

import pytest

from tests.compat.conftest import Official

pytestmark = [pytest.mark.blackbox, pytest.mark.timeout(300)]


def test_run_code_and_clean_up(official: Official) -> None:
    output = official("run", "--rm", "python", "-c", "print('hello'); print(6 * 7)")
    assert re.search(r"^hello\n42$", output, re.MULTILINE)
    assert "exit code = 0" in output
    assert "Cleaned up the session" in output


def test_run_again_in_the_same_session(official: Official) -> None:
    name = f"again-{token_hex(4)}"
    official("run", "python", "-t", name, "-c", "x = 20")
    output = official("run", "--rm", "python", "-t", name, "-c", "print(x + 1)")
    assert "Reusing session" in output
    assert re.search(r"^21$", output, re.MULTILINE)


def test_run_code_that_asks(official: Official) -> None:
    output = official("run", "--rm", "-q", "python", "-c", "print('got ' + input('? '))", stdin="it\n")
    assert "got it" in output


def test_run_code_that_fails(official: Official) -> None:
    output = official("run", "--rm", "python", "-c", "1 / 0")
    assert "ZeroDivisionError" in output


def test_run_files(official: Official) -> None:
    (official.home / "main.py").write_text("import helper\nhelper.hello()\n")
    (official.home / "helper.py").write_text("def hello():\n    print('hello from a file')\n")
    command = "python3 main.py; exit 3"
    output = official("run", "--rm", "python", "main.py", "helper.py", "--exec", command)
    assert "hello from a file" in output
    assert "exit code = 3" in output


def test_start_and_reuse_and_remove(official: Official) -> None:
    name = f"start-{token_hex(4)}"
    assert "is created and ready" in official("start", "python", "-t", name, "-r", "cpu=1", "-r", "mem=256m")
    assert "is already running and ready" in official("start", "python", "-t", name)
    assert "A live session of yours has this name already" in official.fail("start", "python", "-t", name, "--no-reuse")
    assert "Done" in official("rm", name)


def test_files_go_up_and_come_down(official: Official, session: str) -> None:
    names = ["plain.txt", "folder/deep/ä 100%.txt", "한글.txt"]
    for name in names:
        path = official.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    assert "Uploaded" in official("session", "upload", session, *names)
    assert "plain.txt" in official("session", "ls", session, ".")
    assert "ä 100%.txt" in official("session", "ls", session, "folder/deep")
    (official.home / "out").mkdir()
    assert "Downloaded" in official("session", "download", session, *names, "--dest", "out")
    for name in names:
        assert (official.home / "out" / name).read_text() == f"content of {name}"
    assert "There is no such file" in official.fail("session", "download", session, "nothing.txt")
    assert "leads out of the session" in official.fail("session", "ls", session, "../..")


def test_logs_and_history(official: Official, session: str) -> None:
    assert "End of logs" in official("session", "logs", session)
    output = official("session", "status-history", session)
    assert "'running'" in output
    assert "Actual Resource Allocation Time" in output


def test_rename_and_restart(official: Official, session: str) -> None:
    renamed = f"{session}-2"
    assert "renamed" in official("session", "rename", session, renamed)
    assert "Done" in official("session", "restart", renamed)
    assert re.search(r"^2$", official("run", "python", "-t", renamed, "-c", "print(1 + 1)"), re.MULTILINE)
    assert "renamed" in official("session", "rename", renamed, session)


def test_dependency_graph(official: Official, session: str) -> None:
    output = official("session", "show-graph", "--table", session)
    assert session in output
    assert "RUNNING" in output
    assert "RUNNING" in official("session", "show-graph", session)  # its tree reads the name's last but one word


def test_events(official: Official) -> None:
    name = f"events-{token_hex(4)}"
    official("start", "python", "-t", name)
    watching = official.start("session", "events", name)
    official("rm", name)
    _, output = watching.finish()
    seen = [line.split(" ", 1) for line in output.splitlines() if line.startswith(("session_", "kernel_", "server_"))]
    assert seen, output
    assert seen[-1][0] == "server_close"
    for _, data in seen:
        assert json.loads(data) is not None


def test_batch_session(official: Official) -> None:
    name = f"batch-{token_hex(4)}"
    output = official("start", "python", "-t", name, "--type", "batch", "-c", "echo from the batch")
    assert "Session ID" in output
    assert "End of logs" in official("session", "logs", name)


def test_a_gang(official: Official) -> None:
    name = f"gang-{token_hex(4)}"
    output = official("start", "python", "-t", name, "--cluster-size", "2", "-r", "cpu=1", "-r", "mem=128m")
    assert "is created and ready" in output
    official("rm", name)


def test_what_is_refused(official: Official) -> None:
    assert "cannot name a session" in official.fail("start", "python", "-t", "no:pe")
    assert "must be more than zero" in official.fail("start", "python", "-r", "cpu=0")
    assert "folders come later" in official.fail("start", "python", "-m", "data")
    assert "There is no such session" in official.fail("rm", "nobody-at-all")
    assert "The signature does not match" in official.fail("rm", "nobody", BACKEND_SECRET_KEY="wrong")
    assert "unknown or inactive" in official.fail("rm", "nobody", BACKEND_ACCESS_KEY="AKIAWRONG")

"""Every command against the fake server: what it prints where, and its exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from backendai_ray.cli import main
from backendai_ray.cli.logs import new_part
from backendai_ray.cli.output import size_text
from backendai_ray.cli.running import shell_code
from backendai_ray.core.errors import InternalError, UnknownAccessKey
from tests.support.fake_server import FakeServer, FakeSession, Step, problem
from tests.unit.cli.conftest import Bai

CLUSTER_COMMANDS = {"up", "down", "env", "status", "deploy"}
GROUPS = {"node": ["node show"]}
OWN_COMMANDS = sorted({*main.command_names(), *GROUPS["node"]} - CLUSTER_COMMANDS - GROUPS.keys())


@pytest.fixture
def work(bai: Bai, server: FakeServer) -> FakeSession:
    """A session that runs, named ``work``."""
    assert bai("start", "python", "-t", "work").code == 0
    [session] = server.sessions.values()
    return session


# ── run ──


def printing(*records: list[str], exit_code: int = 0) -> Any:
    return lambda code, options: [Step(list(records), "finished", exit_code)]


def test_run_ends_with_the_programs_output_and_exit_code(bai: Bai, server: FakeServer) -> None:
    server.program = printing(["stdout", "out\n"], ["stderr", "err\n"], exit_code=7)
    outcome = bai("run", "python", "-c", "whatever")
    assert (outcome.code, outcome.out, outcome.err) == (7, "out\n", "err\n")
    assert [s.status for s in server.sessions.values()] == ["TERMINATED"]


def test_run_copies_files_and_runs_the_first(bai: Bai, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "my train.py").write_text("print(1)")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_text("1,2")
    outcome = bai("run", "python", str(tmp_path / "my train.py"), str(tmp_path / "data"))
    assert (outcome.code, outcome.out) == (0, "ran python3 'my train.py'\n")
    [session] = server.sessions.values()
    assert session.files == {"my train.py": b"print(1)", "data/x.csv": b"1,2"}


def test_run_builds_first(bai: Bai, server: FakeServer, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def program(code: str, options: dict[str, Any]) -> Iterable[Step]:
        seen.append(options)
        return [Step([["stdout", "cc\n"]], "build-finished", 0), Step([["stdout", "hi\n"]])]

    server.program = program
    (tmp_path / "a.c").write_text("main")
    outcome = bai("run", "gcc", str(tmp_path / "a.c"), "--build", "make", "--exec", "./a")
    assert outcome.out == "cc\nhi\n"
    assert (seen[0]["build"], seen[0]["exec"]) == ("make", "./a")


def test_run_asks_for_everything_that_was_said(bai: Bai, server: FakeServer) -> None:
    options = ["-r", "cpu=2", "-r", "mem=1g", "-r", "cuda.device=1", "-e", "A=b=c", "--cluster-size", "2", "--tag", "t"]
    assert bai("run", "python", "-c", "x", *options).code == 0
    [request] = server.asked("POST", "/session")
    body = json.loads(request.content)
    assert body["config"]["resources"] == {"cpu": "2", "mem": "1g", "cuda.device": "1"}
    assert body["config"]["environ"] == {"A": "b=c"}
    assert (body["clusterSize"], body["tag"], body["type"]) == (2, "t", "interactive")


def test_a_named_session_is_used_again_and_kept(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    outcome = bai("run", "python", "-t", "work", "-c", "x")
    assert (outcome.code, outcome.out) == (0, "ran x\n")
    assert "bai rm work" in outcome.err
    assert [s.status for s in server.sessions.values()] == ["RUNNING"]
    assert bai("run", "python", "-t", "work", "-c", "x", "--rm").code == 0
    assert work.status == "TERMINATED"


def test_run_keep_leaves_the_session(bai: Bai, server: FakeServer) -> None:
    assert bai("run", "python", "-c", "x", "--keep").code == 0
    assert [s.status for s in server.sessions.values()] == ["RUNNING"]


def test_run_as_json(bai: Bai, server: FakeServer) -> None:
    server.program = printing(["stdout", "é\n"], exit_code=2)
    outcome = bai("run", "python", "-c", "x", "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, told["exit_code"], told["stdout"], told["status"]) == (2, 2, "é\n", "finished")


def test_run_batch_shows_the_log_and_ends_with_the_exit_code(bai: Bai, server: FakeServer) -> None:
    server.start_path = [("RUNNING", "started", ""), ("TERMINATED", "task-failed", "exit code 3")]
    before = server.program

    outcome = bai("run", "python", "--batch", "--exec", "exit 3")
    [session] = server.sessions.values()
    assert (session.body["type"], session.body["startupCommand"]) == ("batch", "exit 3")
    assert "task-failed" in outcome.err or "exit code 3" in outcome.err
    assert outcome.code == 1, "this one ended without telling its exit code"
    assert server.program is before


def test_a_program_that_asks_gets_standard_input(bai: Bai, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.program = lambda code, options: [
        Step([["stdout", "name? "]], "waiting-input", None, {"is_password": False}),
        Step([["stdout", "hello\n"]]),
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ada\n"))
    outcome = bai("run", "python", "-c", "x")
    assert (outcome.code, outcome.out) == (0, "name? hello\n")
    [session] = server.sessions.values()
    assert [run.inputs for run in session.runs.values()] == [["Ada"]]


def test_a_program_that_asks_too_much_is_interrupted(
    bai: Bai, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.program = lambda code, options: [Step([["stdout", "name? "]], "waiting-input", None)]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    outcome = bai("run", "python", "-c", "x")
    assert (outcome.code, outcome.out) == (main.OWN_FAILURE, "name? ")
    assert "standard input has ended" in outcome.err
    [session] = server.sessions.values()
    assert (session.interrupts, session.status) == (1, "TERMINATED")


def test_rich_output_is_not_mixed_into_stdout(bai: Bai, server: FakeServer) -> None:
    server.program = lambda code, options: [Step([["media", ["image/png", "x" * 2048]], ["html", "<b>"]])]
    outcome = bai("run", "python", "-c", "x")
    assert (outcome.out, outcome.code) == ("", 0)
    assert "image/png, 2.0 KiB" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "python"], "Say what to run"),
        (["run", "python", "-c", "x", "--exec", "y"], "-c and --exec do not go together"),
        (["run", "python", "--batch", "-c", "x"], "--batch takes --exec"),
        (["run", "python", "-c", "x", "-r", "cpu"], "'cpu' is not of the form cpu=1"),
        (["run", "python", "-c", "x", "-e", "=1"], "'=1' is not of the form NAME=VALUE"),
        (["run", "python", "nosuch.py"], "nosuch.py"),
        (["run", "python", "-c", "x", "--cluster-size", "0"], "--cluster-size"),
        (["exec", "work"], "Give one of"),
        (["rm"], "Name the sessions"),
        (["rm", "x", "--all"], "Name the sessions"),
        (["nosuch"], "There is no command 'nosuch'"),
        (["exce"], "Did you mean exec?"),
    ],
)
def test_wrong_usage_is_said_and_does_nothing(bai: Bai, server: FakeServer, arguments: list[str], said: str) -> None:
    outcome = bai(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert server.sessions == {}


# ── sessions ──


def test_start_ps_info_rm(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    listed = bai("ps")
    assert listed.code == 0
    for text in ("NAME", "work", work.id[:8], "RUNNING", "python", "cpu=1 mem=512m", "node-1"):
        assert text in listed.out
    [row] = json.loads(bai("ps", "--json").out)
    assert (row["id"], row["status"], row["resources"]) == (work.id, "RUNNING", {"cpu": "1", "mem": "512m"})
    assert "RUNNING on node-1" in bai("info", "work").out
    assert json.loads(bai("info", work.id, "--json").out)["name"] == "work"
    assert bai("rm", "work").out == "Ended: work\n"
    assert bai("ps").out == ""
    assert "TERMINATED" in bai("ps", "-a").out


def test_rm_ends_all_it_can(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    outcome = bai("rm", "nosuch", "work")
    assert (outcome.code, outcome.out) == (3, "Ended: work\n")
    assert "nosuch" in outcome.err
    for n in range(3):
        bai("start", "python", "-t", f"s{n}", "--no-wait")
    assert set(bai("rm", "--all", "-f").out.removeprefix("Ended: ").strip().split(", ")) == {"s0", "s1", "s2"}
    assert [r.url.params.get("forced") for r in server.asked("DELETE", "/session/.*")][-3:] == ["true"] * 3


def test_rename_restart_wait(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    assert bai("rename", "work", "other").code == 0
    assert work.name == "other"
    assert bai("restart", "other").out == "other runs again.\n"
    late = bai("wait", "other", "--timeout", "0.05")
    assert (late.code, late.out) == (6, "")
    assert "still RUNNING" in late.err
    assert bai("wait", "other", "--for", "running").code == 0
    work.exit_code, work.result = 5, "failure"
    work.path.append(("TERMINATED", "task-failed", "exit code 5"))
    assert bai("wait", "other").code == 5


def test_logs(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    work.logs = "one\ntwo\n"
    assert bai("logs", "work").out == "one\ntwo\n"
    work.path.append(("TERMINATED", "user-requested", ""))
    assert bai("logs", "-f", "work").out == "one\ntwo\n"
    assert json.loads(bai("logs", "work", "--json").out)["logs"] == "one\ntwo\n"


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [("", "a", "a"), ("a", "ab", "b"), ("a\nb", "b\nc", "b\nc"), ("x" * 2000, "x" * 1500 + "y", "y"), ("ab", "ab", "")],
)
def test_only_the_new_part_of_a_log_is_printed(before: str, now: str, new: str) -> None:
    assert new_part(before, now) == new


def test_consolidate(bai: Bai, work: FakeSession) -> None:
    said = bai("consolidate", "work").out
    assert "work: it can start." in said
    assert "s-9" in said
    assert "Nothing was done; add --apply" in said
    assert "They are being moved." in bai("consolidate", "work", "--apply", "--grace", "5").out
    assert bai("consolidate", "work", "--max-moves", "1").out == "work: it can start.\n"
    assert json.loads(bai("consolidate", "work", "--json").out)["moves"][0]["to_agents"] == ["b"]
    assert bai("consolidate", "work", "--max-moves", "9").code == 2


def test_explain_history_nodes(bai: Bai, server: FakeServer, work: FakeSession) -> None:
    work.status = "PENDING"
    explained = bai("explain", "work").out
    assert "work is PENDING: no node has room" in explained
    assert "1 core short" in explained
    assert "cpu=1" in explained
    assert "It is number 2 of 3 that wait." in explained
    assert "It may start at 03:04." in explained
    assert json.loads(bai("explain", "work", "--json").out)["nodes"][0]["code"] == "not-enough"
    assert "started" in bai("history", "work").out
    ran, waited = json.loads(bai("history", "work", "--json").out)
    assert (waited["kind"], waited["after"], waited["reason"]) == ("refused", "PENDING", "not-enough")
    assert (ran["kind"], ran["after"]) == ("status", "RUNNING")
    assert "2026-01-02 03:04:05.678" in bai("history", "work").out
    assert "not-enough" not in bai("history", "work", "--no-waits").out
    assert bai("dependencies", "work").out.splitlines()[1] == "└─ before  TERMINATED  bbbbbbbb"
    assert json.loads(bai("dependencies", "work", "--json").out)["depends_on"][0]["name"] == "before"
    assert bai("runtimes", "r-image").out.splitlines()[2].split() == ["ir", "R", "R", "4", "yes"]
    assert json.loads(bai("runtimes", "r-image", "--json").out)[0]["name"] == "ir"
    nodes = bai("nodes").out
    assert "cpu 0.5/2, mem 0/4g" in nodes
    assert bai("groups").out.splitlines()[-1].split() == ["default", "drf", "dispersed", "2", "oh"]
    assert json.loads(bai("groups", "--json").out)[0]["warning"] == "oh"


def test_schedule_rehearses(bai: Bai, server: FakeServer) -> None:
    told = bai("schedule", "python", "--dry-run", "-r", "cpu=8", "--cluster-size", "2", "--starts-at", "2h")
    assert told.out.startswith("It would wait: no node has room\nIt is number 2 of 3 that wait.")
    [body] = server.rehearsed
    assert (body["config"]["resources"]["cpu"], body["clusterSize"], body["starts_at"]) == ("8", 2, "2h")
    kernel = {"kernelId": "k", "agentId": "node-1", "devices": {"cpu": {"0": 1000, "1": 1000}}}
    now = {"basis": "now", "message": "there is room for it now"}
    server.rehearsal = {"status": "PENDING", "reason": "placeable", "message": "the next pass places it on node-1"}
    server.rehearsal |= {"placement": [kernel], "estimate": now, "warning": "fifo decides"}
    lines = bai("schedule", "python", "--dry-run", "--batch", "true").out.splitlines()
    assert lines == [
        "It would start now: the next pass places it on node-1",
        "  node-1: cpu 0, 1",
        "Warning: fifo decides",
    ]
    assert (server.rehearsed[1]["type"], server.rehearsed[1]["startupCommand"]) == ("batch", "true")
    as_json = json.loads(bai("schedule", "python", "--dry-run", "--json").out)
    assert as_json["placement"][0]["agent_id"] == "node-1"
    assert not server.sessions
    refused = bai("schedule", "python")
    assert refused.code == 2
    assert "add --dry-run" in refused.err


def test_events(bai: Bai, server: FakeServer) -> None:
    data = json.dumps({"sessionName": "work", "reason": "started"})
    body = f"id: 1\nevent: session_started\ndata: {data}\n\nevent: server_close\ndata: \n\n".encode()
    server.events = [[body], [body]]
    assert bai("events").out == "work  session_started  started\n"
    assert json.loads(bai("events", "--json").out)["event"] == "session_started"


# ── code and files ──


def test_exec(bai: Bai, server: FakeServer, work: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("print('file')")
    assert bai("exec", "work", "-c", "x = 1").out == "ran x = 1\n"
    assert bai("exec", "work", str(tmp_path / "a.py")).out == "ran print('file')\n"
    assert bai("exec", "work", "--shell", "ls").out == "ran ls\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("from stdin"))
    assert bai("exec", "work", "-").out == "ran from stdin\n"
    server.program = printing(exit_code=1)
    assert bai("exec", "work", "-c", "1/0").code == 1
    missing = bai("exec", "nosuch", "-c", "x")
    assert (missing.code, missing.out) == (main.OWN_FAILURE, "")
    assert bai("exec", "work", str(tmp_path / "nosuch.py")).code == main.OWN_FAILURE


def test_interrupt_and_complete(bai: Bai, work: FakeSession) -> None:
    assert bai("interrupt", "work").out == "work was interrupted.\n"
    assert work.interrupts == 1
    assert bai("complete", "work", "os.pa").out.splitlines()[0] == "os.pa!"
    assert json.loads(bai("complete", "work", "os.pa", "--json").out)[0] == {"completion": "os.pa!"}


def test_files(bai: Bai, server: FakeServer, work: FakeSession, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("content")
    assert bai("upload", "work", str(source), "--to", "in/b.txt").out == "in/b.txt\n"
    assert work.files == {"in/b.txt": b"content"}
    listed = bai("ls", "work", "in").out
    assert "in/b.txt" in listed
    assert "7 B" in listed
    target = tmp_path / "back.txt"
    assert bai("download", "work", "in/b.txt", "--to", str(target)).out == f"{target}\n"
    assert target.read_text() == "content"
    assert bai("download", "work", "nosuch").code == 3


# ── quotas ──


def test_quotas_are_set_listed_and_removed(bai: Bai, server: FakeServer) -> None:
    assert bai("quota", "list").err == "No quota is set.\n"
    outcome = bai("quota", "set", "project", "default/ml", "-r", "cpu=8", "-r", "mem=2g", "--sessions", "4")
    assert (outcome.code, outcome.out) == (0, "The quota of project default/ml is set.\n")
    [request] = server.asked("PUT", "/quotas/project/default/ml")
    assert json.loads(request.content) == {"slots": {"cpu": "8", "mem": "2g"}, "sessions": 4, "pending": None}
    assert "cpu 3/8, mem 0/2g" in bai("quota", "list").out
    assert json.loads(bai("quota", "list", "--json").out)[0]["used_sessions"] == 1
    assert bai("quota", "rm", "project", "default/ml").code == 0
    assert json.loads(bai("quota", "list", "--json").out) == []
    assert bai("quota", "set", "user", "alice").code == 2


# ── errors ──


def test_an_error_is_one_line_and_a_code(bai: Bai, server: FakeServer) -> None:
    outcome = bai("info", "nosuch")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == "Error: there is no session 'nosuch'\n"
    server.fail_next(problem(UnknownAccessKey()))
    assert bai("ps").code == 4
    server.fail_next(httpx.ConnectError("connection refused"))
    away = bai("ps")
    assert away.code == 5
    assert "bai up" in away.err
    server.fail_next(problem(InternalError()))
    assert "(request req-1)" in bai("ps").err
    assert "Traceback" not in away.err


def test_debug_shows_where_it_happened(bai: Bai) -> None:
    assert "Traceback" in bai("--debug", "info", "nosuch").err


def test_missing_settings_are_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("BACKEND_ENDPOINT", "BACKEND_ACCESS_KEY", "BACKEND_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main(["ps"])
    assert ended.value.code == 2
    assert 'eval "$(bai env)"' in capfd.readouterr().err


# ── the whole ──


@pytest.mark.parametrize("command", OWN_COMMANDS)
def test_every_command_has_help_with_an_example(bai: Bai, command: str) -> None:
    outcome = bai(*command.split(), "--help")
    assert outcome.code == 0
    assert f"bai {command}" in outcome.out.split("Options:")[0].split("\n", 1)[1]
    assert "--json" in outcome.out or command in {"shell", "completion"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(bai: Bai, shell: str) -> None:
    assert "_BAI_COMPLETE" in bai("completion", shell).out


def test_help_is_light() -> None:
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules))\n"
    program += "from backendai_ray.cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("\n\n")[2].split())
    assert loaded & {"ray", "httpx", "pydantic", "rich", "asyncio", "fastapi"} == set()


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), (255, 255), (256, 0), (-9, 137), (-15, 143)])
def test_exit_codes_are_those_of_a_shell(code: int | None, expected: int) -> None:
    assert shell_code(code) == expected


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**40, "5120.0 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text

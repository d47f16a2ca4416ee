"""The client, plain and asynchronous, against a running cluster; once on each backend where it matters."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backendai_ray.client import AsyncClient, Client, InputRequest, Session
from backendai_ray.core.errors import (
    BackendError,
    FileMissing,
    ImageNotFound,
    InsufficientResources,
    InvalidParameter,
    InvalidSignature,
    KernelStartFailed,
    NameInUse,
    NotFound,
    PathOutsideSession,
    QuotaExceeded,
    RequestTimeout,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    Unauthorized,
)
from backendai_ray.local_cluster import LocalCluster
from tests.support.live import Clusters, client_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.blackbox]
SMALL = {"cpu": 0.5, "mem": "256m"}


@pytest.fixture(scope="module")
def shared(live_cluster: LocalCluster) -> Iterator[Session]:
    """One session for the tests that only run code in it."""
    with (
        Client(live_cluster.endpoint, live_cluster.access_key, live_cluster.secret_key) as client,
        client.sessions.create("python", **SMALL, timeout=60) as session,
    ):
        yield session


# ── running code ──


def test_state_stays_between_cells(shared: Session) -> None:
    assert shared.run("import os\nx = 41").ok
    result = shared.run("print(x + 1, end='')")
    assert (result.stdout, result.exit_code) == ("42", 0)


def test_stdout_and_stderr_keep_apart_and_in_order(shared: Session) -> None:
    code = "import sys\nfor n in range(3): print(n, flush=True); print('é', n, file=sys.stderr, flush=True)"
    result = shared.run(code)
    assert (result.stdout, result.stderr) == ("0\n1\n2\n", "é 0\né 1\né 2\n")


def test_an_exception_is_told_and_the_state_lives_on(shared: Session) -> None:
    shared.run("kept = 7")
    result = shared.run("1/0")
    assert not result.ok
    assert "ZeroDivisionError" in result.stderr
    assert shared.run("print(kept)").stdout == "7\n"


def test_output_arrives_while_the_program_runs(shared: Session) -> None:
    run = shared.stream("import time\nfor n in range(4): print(n, flush=True); time.sleep(0.3)")
    began = time.monotonic()
    arrived = [(chunk.data, time.monotonic() - began) for chunk in run]
    assert "".join(data for data, _ in arrived) == "0\n1\n2\n3\n"
    assert len(arrived) >= 3, "each line must come when it is printed, not all at the end"
    assert arrived[0][1] < 0.9


def test_much_output_is_whole(shared: Session) -> None:
    result = shared.run("for n in range(200_000): print(n)")
    assert result.stdout == "".join(f"{n}\n" for n in range(200_000))


def test_input_is_answered(shared: Session) -> None:
    asked: list[InputRequest] = []

    def answer(request: InputRequest) -> str:
        asked.append(request)
        return "Ada"

    result = shared.run("name = input('who? ')\nprint('hello', name)", input=answer)
    assert "hello Ada" in result.stdout
    assert [request.prompt for request in asked] == ["who? "]


def test_interrupt_ends_the_run_and_not_the_session(shared: Session) -> None:
    run = shared.stream("import time\nprint('begun', flush=True)\ntime.sleep(600)")
    output = iter(run)
    assert next(output).data == "begun\n"
    began = time.monotonic()
    shared.interrupt()
    result = run.result()
    assert time.monotonic() - began < 10
    assert "KeyboardInterrupt" in result.stderr
    assert shared.run("print('alive')").stdout == "alive\n"


def test_a_run_may_have_a_time_limit(shared: Session) -> None:
    with pytest.raises(RequestTimeout, match="interrupted"):
        shared.run("import time\ntime.sleep(600)", timeout=1)
    assert shared.run("print('alive')", timeout=30).stdout == "alive\n"


def test_batch_builds_and_runs(shared: Session) -> None:
    result = shared.batch(build="echo built > built.txt", exec="cat built.txt; echo oops >&2; exit 3")
    assert (result.exit_code, result.phases) == (3, {"build": 0})
    assert "built\n" in result.stdout
    assert "oops\n" in result.stderr


def test_completion(shared: Session) -> None:
    shared.run("import os")
    assert any(text.endswith("path") for text in shared.complete("os.pat"))


def test_several_threads_and_one_session(shared: Session) -> None:
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda n: shared.run(f"print({n})").stdout, range(8)))
    assert outputs == [f"{n}\n" for n in range(8)]


# ── files ──


def test_code_takes_the_direct_line_to_an_agent_on_the_same_machine(
    shared: Session, live_cluster: LocalCluster
) -> None:
    shared.run("1")
    (socket,) = (live_cluster.settings.data_dir / "lines").glob("*.sock")
    ends = [line for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f"/{socket.name}")]
    assert len(ends) >= 2, "nobody but the agent, which listens"


def test_files_there_and_back(shared: Session, tmp_path: Path) -> None:
    source = tmp_path / "data"
    (source / "deep").mkdir(parents=True)
    (source / "é ü%20.bin").write_bytes(bytes(range(256)) * 1000)
    (source / "deep" / "empty").write_bytes(b"")
    sent = shared.upload(source, "in")
    assert set(sent) == {"in/é ü%20.bin", "in/deep/empty"}
    assert {(f.name, f.kind) for f in shared.ls("in")} == {("é ü%20.bin", "file"), ("deep", "dir")}
    back = tmp_path / "back"
    shared.download("in", back)
    assert (back / "é ü%20.bin").read_bytes() == bytes(range(256)) * 1000
    assert (back / "deep" / "empty").read_bytes() == b""


def test_the_program_sees_uploads_and_its_files_come_back(shared: Session) -> None:
    shared.write("numbers.txt", "1\n2\n3\n")
    shared.run("print(sum(map(int, open('numbers.txt'))), file=open('sum.txt', 'w'))")
    assert shared.read("sum.txt") == b"6\n"


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../evil", "a\x00b"])
def test_no_path_leads_out_of_the_session(shared: Session, tmp_path: Path, path: str) -> None:
    (tmp_path / "evil").write_text("evil")
    for attempt in (
        lambda: shared.upload(tmp_path / "evil", path),
        lambda: shared.read(path),
        lambda: shared.ls(path),
    ):
        with pytest.raises((PathOutsideSession, InvalidParameter)):
            attempt()


def test_missing_files_are_told(shared: Session, tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        shared.download("nosuch.txt", tmp_path)
    with pytest.raises(FileMissing):
        shared.ls("nosuch")
    assert list(tmp_path.iterdir()) == []


# ── the terminal ──


def test_a_terminal(shared: Session) -> None:
    with shared.terminal(rows=30, cols=100) as terminal:
        terminal.write(b"stty size; echo $((40 + 2))-shown; exit\n")
        shown = b"".join(terminal)
    assert b"30 100" in shown
    assert b"42-shown" in shown


# ── sessions ──


def test_a_life(live_client: Client) -> None:
    session = live_client.sessions.create("python", name="live-one", **SMALL, env={"GREETING": "hi"}, timeout=60)
    info = session.info()
    assert (info.status, info.name, info.cluster_size) == ("RUNNING", "live-one", 1)
    assert session.run("import os; print(os.environ['GREETING'])").stdout == "hi\n"
    with pytest.raises(NameInUse):
        live_client.sessions.create("python", name="live-one", **SMALL)
    assert live_client.sessions.create("python", name="live-one", **SMALL, reuse=True).id == session.id
    session.rename("live-two")
    assert live_client.sessions.get("live-two").id == session.id
    assert session.id in {i.id for i in live_client.sessions.iterate()}
    session.destroy()
    ended = session.info()
    assert ended.is_terminal
    assert session.id not in {i.id for i in live_client.sessions.iterate()}
    history = [change.after for change in session.history() if not change.kernel_id]
    assert history[-1] == ended.status
    assert "RUNNING" in history
    with pytest.raises((SessionEnded, SessionNotReady, SessionNotFound)):
        session.run("1")
    session.destroy()


def test_restart_keeps_files_and_drops_state(live_client: Client) -> None:
    with live_client.sessions.create("python", **SMALL, timeout=60) as session:
        session.run("x = 1")
        session.write("kept.txt", "kept")
        session.restart()
        session.wait("RUNNING", timeout=60)
        assert session.read("kept.txt") == b"kept"
        assert "NameError" in session.run("x").stderr


@pytest.mark.parametrize(("command", "exit_code", "result"), [("echo fine", 0, "success"), ("exit 3", 3, "failure")])
def test_batch_sessions_run_and_end(live_client: Client, command: str, exit_code: int, result: str) -> None:
    session = live_client.sessions.create("python", type="batch", startup_command=command, **SMALL)
    info = session.wait(timeout=60)
    assert (info.result, info.exit_code) == (result, exit_code)
    if exit_code == 0:
        assert "fine" in session.logs()


def test_a_batch_session_makes_room_for_an_urgent_one_and_runs_again(live_client: Client) -> None:
    cores = float(live_client.agents()[0].capacity["cpu"]) - 1
    patient = "echo run; trap 'echo told; exit 9' TERM; until [ -e go ]; do sleep 0.05; done"
    batch = {"type": "batch", "cpu": cores, "mem": "128m", "wait": False}
    low = live_client.sessions.create("python", startup_command=patient, priority=5, **batch)
    low.wait("RUNNING", timeout=60)
    high = live_client.sessions.create("python", startup_command="true", priority=50, **batch)
    assert high.wait(timeout=60).result == "success"
    low.wait("RUNNING", timeout=60)
    low.write("go", "")
    info = low.wait(timeout=60)
    assert (info.result, info.preemptions) == ("success", 1)
    moves = [change for change in low.history() if not change.kernel_id and change.reason == "preempted"]
    assert [change.after for change in moves] == ["TERMINATING", "PENDING"]
    assert all(high.id in change.message for change in moves)


def test_a_gang_reaches_itself_by_name(live_client: Client) -> None:
    with live_client.sessions.create("python", cluster_size=2, **SMALL, timeout=90) as session:
        assert [k.hostname for k in session.info().kernels] == ["main1", "sub1"]
        code = "import socket\nprint(len({socket.gethostbyname(n) for n in ('main1', 'sub1')}))"
        assert session.run(code).stdout == "2\n"


def test_one_that_waits_says_why(live_client: Client) -> None:
    node = live_client.agents()[0]
    cores = float(node.capacity["cpu"])
    with (
        # Half a core is left beside the session that tests of this file share.
        live_client.sessions.create("python", cpu=cores - 1, mem="128m", timeout=60),
        live_client.sessions.create("python", cpu=cores, mem="128m", wait=False) as waiting,
    ):
        explanation = wait_until(lambda: (e := waiting.explain()).nodes and e, timeout_s=10)
        assert explanation.nodes[0].agent_id == node.id
        assert "cpu" in explanation.nodes[0].shortfall
        assert (explanation.position, explanation.waiting, explanation.closest) == (1, 1, explanation.nodes[0])
        assert explanation.estimate is not None
        assert explanation.estimate.basis in ("predicted", "unknown")  # other tests have ended sessions before
        rehearsed = live_client.sessions.dry_run("python", cpu="0.1", mem="64m", priority=50)
        assert [kernel.agent_id for kernel in rehearsed.placement] == [node.id], rehearsed
        assert live_client.sessions.dry_run("python", cpu="0.1", mem="64m").behind == waiting.id
        known = len(live_client.sessions.list().items)
        live_client.sessions.dry_run("python", cpu="0.1", mem="64m")
        assert len(live_client.sessions.list().items) == known
        with pytest.raises(RequestTimeout, match="PENDING"):
            waiting.wait("RUNNING", timeout=0.2)


def test_what_depends_on_a_failure_is_cancelled_or_starts_anyway(live_client: Client) -> None:
    def batch(name: str, command: str, **more: Any) -> Session:
        return live_client.sessions.create(
            "python", name=name, type="batch", startup_command=command, wait=False, **SMALL, **more
        )

    first = batch("fails-first", "sleep 1; false")
    anyway = batch("anyway", "echo fine", depends_on=["fails-first"], dependency_failure="start-anyway")
    with batch("second", "echo never", depends_on=["fails-first"]) as second:
        assert second.wait(timeout=60).reason == "dependency-failed"
    assert anyway.wait(timeout=60).result == "success"
    assert [node.id for node in anyway.dependency_graph().depends_on] == [first.id]
    told = wait_until(anyway.scheduling_history, timeout_s=10)
    assert told[0].code == "dependencies"


def test_a_quota_holds_and_is_named(clusters: Clusters) -> None:
    """1. The owner may run one more session, and have one wait. 2. A second waits for the quota, a third is refused.
    3. Without the quota the second starts. Once is enough: no backend has to do with it."""
    with client_of(clusters.get("process")) as live_client:
        quota = live_client.set_quota("user", "admin", pending=1000)
        limits = {"sessions": quota.used_sessions + 1, "pending": quota.used_pending + 1}
        live_client.set_quota("user", "admin", **limits)
        try:
            with (
                live_client.sessions.create("python", **SMALL, timeout=60),
                live_client.sessions.create("python", **SMALL, wait=False) as waiting,
            ):
                why = wait_until(lambda: (e := waiting.explain()).code == "quota" and e, timeout_s=10)
                assert "the quota of user admin allows" in why.message
                with pytest.raises(QuotaExceeded, match="the quota of user admin allows"):
                    live_client.sessions.create("python", **SMALL, wait=False)
                live_client.remove_quota("user", "admin")
                waiting.wait("RUNNING", timeout=60)
        finally:
            live_client.remove_quota("user", "admin")
        assert live_client.quotas() == []


def test_events_tell_of_a_life(live_client: Client) -> None:
    seen: list[tuple[str, str]] = []
    with live_client.sessions.create("python", name="watched", **SMALL, timeout=60) as session:
        watcher = threading.Thread(
            target=lambda: seen.extend((e.name, str(e.data.get("sessionId"))) for e in session.events()), daemon=True
        )
        watcher.start()
        session.run("1")
    watcher.join(timeout=30)
    assert not watcher.is_alive(), "the events of one session end with it"
    assert ("session_terminated", session.id) in seen


# ── bad input: a clear error, and nothing left ──


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"image": "no/such-image:1"}, (ImageNotFound, KernelStartFailed)),
        ({"mem": "900t"}, (InsufficientResources,)),
        ({"cpu": -1}, (InvalidParameter,)),
        ({"cpu": "much"}, (InvalidParameter,)),
        ({"cpu": 1e30}, (InvalidParameter,)),
        ({"mem": "0"}, (InvalidParameter, InsufficientResources)),
        ({"resources": {"cuda.device": 1}}, (InsufficientResources,)),
        ({"cluster_size": 0}, (InvalidParameter,)),
        ({"name": "no spaces allowed"}, (InvalidParameter,)),
        ({"type": "strange"}, (InvalidParameter,)),
        ({"type": "batch"}, (InvalidParameter,)),
        ({"depends_on": ["nosuch"]}, (InvalidParameter, NotFound)),
        ({"resource_group": "nosuch"}, (BackendError,)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_leaves_nothing(
    live_client: Client, arguments: dict[str, object], error: tuple[type[BackendError], ...]
) -> None:
    before = {info.id for info in live_client.sessions.iterate()}
    with pytest.raises(error) as caught:
        live_client.sessions.create(**{"image": "python", **SMALL, "timeout": 60, **arguments})  # type: ignore[arg-type]
    assert len(caught.value.message) > 10
    wait_until(lambda: {info.id for info in live_client.sessions.iterate()} <= before, timeout_s=20)


def test_wrong_keys(live_cluster: LocalCluster) -> None:
    with Client(live_cluster.endpoint, live_cluster.access_key, "wrong") as client, pytest.raises(InvalidSignature):
        client.sessions.list()
    with Client(live_cluster.endpoint, "AKNOSUCHKEY", "wrong") as client, pytest.raises(Unauthorized):
        client.sessions.list()


# ── asynchronous ──


async def test_the_same_asynchronously(live_endpoint: Mapping[str, str]) -> None:
    settings = (live_endpoint[f"BACKEND_{name}"] for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
    async with AsyncClient(*settings) as client:

        async def one(n: int) -> str:
            async with await client.sessions.create("python", **SMALL, timeout=90) as session:
                chunks = [chunk.data async for chunk in session.stream(f"print({n})")]
                await session.write("n.txt", str(n))
                assert await session.read("n.txt") == str(n).encode()
                return "".join(chunks)

        assert await asyncio.gather(*(one(n) for n in range(4))) == [f"{n}\n" for n in range(4)]
        assert (await client.hello())["version"].startswith("v")

"""Batch mode and the startup command."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

from actors.agent.runner_link import STARTUP_RUN_ID, RunnerLink
from backendai_ray.core.execution import ExecMode, RunOutput, RunStatus
from tests.support.waiting import wait_until

from .conftest import PATIENCE_S, Kernel, attach, run, until_output

BATCH = ExecMode.BATCH


def steps(outputs: list[RunOutput]) -> list[tuple[str, int | None]]:
    return [(output.status.value, output.exit_code) for output in outputs if output.exit_code is not None]


async def test_the_steps_run_in_order_and_each_tells_its_end(link: RunnerLink) -> None:
    options: dict[str, Any] = {
        "clean": "echo cleaning; exit 4",
        "build": "echo building",
        "exec": "echo running; exit 3",
    }
    story = await run(link, "", BATCH, **options)
    assert steps(story.outputs) == [("clean-finished", 4), ("build-finished", 0), ("finished", 3)]
    told = [(output.console, output.exit_code) for output in story.outputs]
    texts = ["".join(str(data) for _, data in console) for console, _ in told]
    assert "".join(texts) == "cleaning\nbuilding\nrunning\n"
    ends = [index for index, (_, exit_code) in enumerate(told) if exit_code is not None]
    assert "".join(texts[: ends[0] + 1]) == "cleaning\n"
    assert "".join(texts[: ends[1] + 1]) == "cleaning\nbuilding\n"


async def test_a_failed_build_is_not_executed(link: RunnerLink) -> None:
    story = await run(link, "", BATCH, build="exit 2", exec="echo never")
    assert steps(story.outputs) == [("build-finished", 2), ("finished", 2)]
    assert story.records == []


async def test_the_defaults_run_the_main_program(kernel: Kernel, link: RunnerLink) -> None:
    assert (await run(link, "", BATCH, exec="*")).exit_code == 127
    (kernel.workdir / "main.py").write_text("import sys, os\nprint(os.getcwd())\nsys.exit(9)\n")
    story = await run(link, "", BATCH, clean="*", build="*", exec="*")
    assert steps(story.outputs) == [("build-finished", 0), ("finished", 9)]
    assert story.text() == f"{kernel.workdir}\n"


async def test_commands_run_in_the_working_directory_whatever_user_code_did(kernel: Kernel, link: RunnerLink) -> None:
    await run(link, "import os\nos.chdir('/')\nos.close(1)")
    assert (await run(link, "", BATCH, exec="pwd")).text() == f"{kernel.workdir}\n"


async def test_stderr_is_kept_apart_and_stdin_is_empty(link: RunnerLink) -> None:
    story = await run(link, "", BATCH, exec="cat; echo out; echo err >&2")
    assert (story.text(), story.text("stderr")) == ("out\n", "err\n")


async def test_a_command_killed_by_a_signal_tells_which(link: RunnerLink) -> None:
    assert (await run(link, "", BATCH, exec="kill -9 $$")).exit_code == 128 + signal.SIGKILL


async def test_a_background_child_does_not_hold_the_run(link: RunnerLink) -> None:
    started = time.monotonic()
    assert (await run(link, "", BATCH, exec="sleep 30 & echo started")).text() == "started\n"
    assert time.monotonic() - started < 10


async def test_an_interrupt_reaches_the_whole_process_group(link: RunnerLink) -> None:
    command = "trap 'echo stopped; exit 5' INT; echo on; sleep 60 & wait; wait"
    await link.execute("batch", BATCH, "", {"exec": command})
    await until_output(link, "batch", "on")
    assert await link.interrupt("batch")
    story = await attach(link, "batch")
    assert story.text() == "on\nstopped\n"
    assert story.exit_code == 5


async def test_a_program_deaf_to_interrupts_is_killed_at_the_third(link: RunnerLink) -> None:
    await link.execute("deaf", BATCH, "", {"exec": "trap '' INT; echo on; while true; do sleep 1; done"})
    await until_output(link, "deaf", "on")
    for _ in range(3):
        assert await link.interrupt("deaf")
    assert (await attach(link, "deaf")).exit_code == 128 + signal.SIGKILL


async def test_a_large_output_of_a_command_arrives_whole(link: RunnerLink) -> None:
    story = await run(link, "", BATCH, exec="seq 1 400000")
    assert story.text() == "".join(f"{i}\n" for i in range(1, 400001))


async def test_the_startup_command_leaves_log_and_result(kernel: Kernel, link: RunnerLink) -> None:
    await link.run_startup("echo hello; echo oops >&2; exit 6")
    await link.run_startup("echo never")
    story = await attach(link, STARTUP_RUN_ID)
    assert story.exit_code == 6
    assert sorted(story.records) == [("stderr", "oops\n"), ("stdout", "hello\n")]
    result = json.loads((kernel.folder / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("finished", 6)
    assert result["started_at"] <= result["ended_at"]
    assert sorted((kernel.folder / "run" / "startup.log").read_text().splitlines()) == ["hello", "oops"]


async def test_the_startup_command_ends_at_its_timeout(kernel: Kernel, link: RunnerLink) -> None:
    await link.run_startup("echo on; sleep 60", timeout_s=0.3)
    story = await attach(link, STARTUP_RUN_ID)
    assert (story.end.status, story.exit_code) == (RunStatus.EXEC_TIMEOUT, 124)
    assert json.loads((kernel.folder / "run" / "result.json").read_text())["status"] == "exec-timeout"


async def test_the_result_is_there_when_nobody_ever_asked(kernel: Kernel, link: RunnerLink) -> None:
    await link.run_startup("seq 1 3000000; exit 3")
    link.close()
    result = kernel.folder / "run" / "result.json"
    wait_until(result.exists, timeout_s=PATIENCE_S)
    assert json.loads(result.read_text())["exit_code"] == 3
    logs = [path for path in (kernel.folder / "run").iterdir() if path.name.startswith("startup.log")]
    assert sum(path.stat().st_size for path in logs) < 40 << 20
    assert (kernel.folder / "run" / "startup.log").read_bytes().endswith(b"3000000\n")


async def test_query_runs_wait_for_the_startup_command_and_interrupts_reach_it(link: RunnerLink) -> None:
    await link.run_startup("echo on; sleep 60")
    await until_output(link, STARTUP_RUN_ID, "on")
    after = asyncio.ensure_future(run(link, "1+1"))
    assert await link.interrupt(STARTUP_RUN_ID)
    assert (await attach(link, STARTUP_RUN_ID)).exit_code == 128 + signal.SIGINT
    assert (await after).text() == "2\n"


async def test_the_commands_see_the_environment_of_the_kernel(start_kernel: object) -> None:
    kernel: Kernel = start_kernel(GREETING="hi")  # type: ignore[operator]
    link = await kernel.link()
    assert (await run(link, "", BATCH, exec="echo $GREETING; echo $BAI_RUNNER_TOKEN")).text() == "hi\n\n"


async def test_the_runners_shutdown_ends_its_commands(kernel: Kernel, link: RunnerLink) -> None:
    await link.execute("deaf", BATCH, "", {"exec": "trap '' INT; echo on; sleep 61 & echo $! > child; wait; wait"})
    await until_output(link, "deaf", "on")
    wait_until((kernel.workdir / "child").exists)
    child = Path("/proc") / (kernel.workdir / "child").read_text().strip()
    await link.shutdown()
    assert kernel.process is not None
    assert kernel.process.wait(PATIENCE_S) == 0
    wait_until(lambda: not is_running(child), timeout_s=PATIENCE_S, story="the command's own child should be gone")


async def test_a_shutdown_with_grace_lets_the_command_end_by_itself(kernel: Kernel, link: RunnerLink) -> None:
    await link.run_startup("trap 'echo saved; exit 3' TERM; echo on; sleep 61 & wait")
    await until_output(link, STARTUP_RUN_ID, "on")
    await link.shutdown(PATIENCE_S)
    assert kernel.process is not None
    assert kernel.process.wait(PATIENCE_S) == 0
    assert json.loads((kernel.folder / "run" / "result.json").read_text())["exit_code"] == 3
    assert (kernel.folder / "run" / "startup.log").read_text().endswith("saved\n")


def is_running(process: Path) -> bool:
    """Whether it still runs code; nobody may have asked for its exit status yet."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""An agent with real kernels on both backends: what sessions do, and what they leave behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from backendai_ray.core.errors import (
    FileMissing,
    InvalidParameter,
    PathOutsideSession,
    RunNotFound,
    SessionEnded,
    StaleRoute,
)
from backendai_ray.core.execution import ExecMode, RunStatus
from backendai_ray.core.sessions import Reason, Status
from tests.integration.agent.hosting import MIB, HostedAgent, kernel_spec, text_of

EATER = """
open('/proc/self/oom_score_adj', 'w').write('1000')  # the parent stays
x = []
while True:
    x.append(bytearray(b'1') * 2**20)
"""


async def test_cells_files_and_terminals(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    assert await hosted.say(spec, "x = 41; print('ü')") == "ü"
    assert await hosted.say(spec, "print(x + 1)") == "42"

    route = hosted.request(spec, "").route
    data = os.urandom(3 * MIB)
    for offset in range(0, len(data), MIB):
        piece, is_last = data[offset : offset + MIB], offset + MIB == len(data)
        await hosted.call("write_file", route, "in/data.bin", offset, piece, final=is_last)
    read = "import hashlib; print(hashlib.sha256(open('in/data.bin', 'rb').read()).hexdigest())"
    assert await hosted.say(spec, read) == hashlib.sha256(data).hexdigest()
    await hosted.run(spec, "open('in/more.txt', 'w').write('more')")  # what was uploaded belongs to the session
    entries = await hosted.call("list_files", route, "in")
    assert [(e.name, e.kind, e.size) for e in entries] == [("data.bin", "file", 3 * MIB), ("more.txt", "file", 4)]
    transfer = await hosted.call("open_download", route, ["in/data.bin"], archive=False)
    assert transfer.size == len(data)
    assert await hosted.call("read_download", transfer.id, MIB, 10) == data[MIB : MIB + 10]
    await hosted.call("close_download", transfer.id)

    await hosted.call("open_pty", route, rows=24, cols=80, pty_id="t")
    await hosted.call("write_pty", route, "t", b"echo $((40 + 2))-$(id -u)\n")
    seen, seq = b"", 0
    while b"42-" not in seen:
        seq, more, closed = await hosted.call("read_pty", route, "t", seq, 10.0)
        assert more or not closed
        seen += more
    await hosted.call("close_pty", route, "t")
    assert await hosted.call("complete", route, "x.bit_le", {}) != ()
    await hosted.end(spec)


async def test_interrupt_and_input(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    asked = await hosted.call("execute", hosted.request(spec, "print(input('who? '))", run_id="ask", wait_s=20))
    while asked.status is RunStatus.CONTINUED:
        asked = await hosted.call("execute", hosted.request(spec, "", run_id="ask", mode=ExecMode.CONTINUE))
    assert asked.status is RunStatus.WAITING_INPUT
    assert "me" in await hosted.say(spec, "me", run_id="ask", mode=ExecMode.INPUT)
    running = asyncio.create_task(hosted.run(spec, "print('on it', flush=True)\nwhile True: pass", run_id="loop"))
    await asyncio.sleep(0.5)
    await hosted.call("interrupt", hosted.request(spec, "").route)
    assert "KeyboardInterrupt" in text_of(await running)
    await hosted.end(spec)


async def test_killed_for_memory_is_said(hosted: HostedAgent) -> None:
    spec = kernel_spec(memory_bytes=128 * MIB)
    await hosted.begin(spec)
    child = (
        "open('/proc/self/oom_score_adj', 'w').write('1000')\\nx = []\\nwhile True: x.append(bytearray(b'1') * 2**20)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', \"{child}\"])"
    said = await hosted.say(spec, code)
    assert "a process of the session was killed for memory: the limit is 128m" in said
    with pytest.raises(SessionEnded, match="killed for memory: the limit is 128m"):
        await hosted.run(spec, "x = []\nwhile True: x.append(bytearray(b'1') * 2**20)")
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert (fact.reason, fact.message) == ("out-of-memory", "killed for memory: the limit is 128m")
    await hosted.call("acknowledge", [spec.kernel_id])


async def test_startup_command(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.call("run_startup", spec.kernel_id, "echo working; exit 3", 30.0)
    await hosted.until(lambda: (f := hosted.last(spec)) and f.startup_exit_code is not None)
    fact = hosted.last(spec)
    assert fact is not None
    assert (fact.startup_exit_code, fact.startup_timed_out) == (3, False)
    assert b"working" in await hosted.call("logs", spec.kernel_id)
    await hosted.call("destroy_kernels", [spec.kernel_id], Reason.TASK_FAILED)
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert (fact.startup_exit_code, fact.reason) == (3, "task-failed")
    assert b"working" in fact.log_tail
    await hosted.call("acknowledge", [spec.kernel_id])


async def test_startup_command_that_takes_too_long(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.call("run_startup", spec.kernel_id, "sleep 60", 0.5)
    await hosted.until(lambda: (f := hosted.last(spec)) and f.startup_timed_out)
    await hosted.end(spec)


async def test_restart(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.run(spec, "x = 1; open('kept', 'w').write('kept')")
    await hosted.call("restart_kernels", [spec.kernel_id], 1)
    await hosted.until(lambda: [f.status for f in hosted.facts].count(Status.RUNNING) == 2)
    with pytest.raises(StaleRoute):
        await hosted.run(spec, "1")
    again = replace(spec, epoch=1)
    assert await hosted.say(again, "print('x' in globals(), open('kept').read())") == "False kept"
    await hosted.end(spec)


async def test_paths_that_lead_out(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    route = hosted.request(spec, "").route
    await hosted.run(spec, "import os; os.symlink('/etc', 'etc'); os.symlink('/etc/passwd', 'pw'); os.mkfifo('fifo')")
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(PathOutsideSession):
            await hosted.call("open_download", route, [path], archive=False)
    for path in ("etc/passwd", "pw", "fifo"):
        with pytest.raises((PathOutsideSession, InvalidParameter)):
            await hosted.call("open_download", route, [path], archive=False)
        with pytest.raises((PathOutsideSession, InvalidParameter)):
            await hosted.call("list_files", route, f"{path}/x")
    with pytest.raises((PathOutsideSession, InvalidParameter)):
        await hosted.call("write_file", route, "etc/evil", 0, b"x", final=True)
    await hosted.call("write_file", route, "pw", 0, b"mine", final=True)  # replaces the link itself
    assert "mine" not in await asyncio.to_thread(Path("/etc/passwd").read_text)
    with pytest.raises(FileMissing):
        await hosted.call("open_download", route, ["nope"], archive=False)
    await hosted.end(spec)


async def test_unknown_image(hosted: HostedAgent) -> None:
    spec = kernel_spec(image="127.0.0.1:9/no-such-image:1")
    await hosted.call("create_kernels", [spec])
    fact = await hosted.until_status(spec, Status.TERMINATED)
    if hosted.settings.agent.backend == "docker":  # its registry does not answer: another try may do better
        assert (fact.reason, fact.retryable) == ("start-failed", True)
    else:
        assert (fact.reason, fact.retryable) == ("image-not-found", False)
    assert "no-such-image" in fact.message
    await hosted.call("acknowledge", [spec.kernel_id])


async def test_many_at_once(hosted: HostedAgent) -> None:
    """Orders, ends and orders to end on top of each other: nothing is left, no descriptor leaks."""
    open_files = []
    for _ in range(2):
        specs = [kernel_spec(core) for core in (0, 1) for _ in range(6)]
        await hosted.call("create_kernels", specs)
        for spec in specs[::2]:  # while they are being made
            await hosted.call("destroy_kernels", [spec.kernel_id], Reason.USER_REQUESTED, forced=True)
        for spec in specs[1::2]:
            await hosted.until_status(spec, Status.RUNNING, timeout_s=90)
        outputs = await asyncio.gather(*(hosted.say(spec, "print(6 * 7)") for spec in specs[1::2]))
        assert outputs == ["42"] * 6
        await hosted.end(*specs)
        open_files.append(await hosted.call("open_files"))
    assert (await hosted.call("inspect")).kernels == ()
    assert (
        open_files[1] <= open_files[0] + 6
    )  # more threads, each with its connection to the engine; nothing per kernel


@pytest.mark.docker
async def test_image_without_python(hosted: HostedAgent, no_python_image: str) -> None:
    if hosted.settings.agent.backend != "docker":
        pytest.skip("the process backend has no images")
    spec = kernel_spec(image=no_python_image)
    await hosted.begin(spec)
    output = await hosted.run(spec, "echo out; echo err >&2; pwd; exit 4")
    assert sorted(output.console) == [("stderr", "err\n"), ("stdout", "out\n/home/work\n")] or output.exit_code == 4
    assert "out\n" in text_of(output)
    assert output.exit_code == 4
    loop = asyncio.create_task(hosted.run(spec, "echo on it; sleep 100", run_id="loop"))
    await asyncio.sleep(0.5)
    await hosted.call("interrupt", hosted.request(spec, "").route)
    assert (await loop).exit_code != 0
    await hosted.call("run_startup", spec.kernel_id, "echo started; exit 5", None)
    await hosted.until(lambda: (f := hosted.last(spec)) and f.startup_exit_code == 5)
    assert b"started" in await hosted.call("logs", spec.kernel_id)
    with pytest.raises(RunNotFound):
        await hosted.call("execute", hosted.request(spec, "", run_id="unknown", mode=ExecMode.CONTINUE))
    await hosted.end(spec)


@pytest.mark.docker
async def test_image_whose_process_would_exit_at_once(hosted: HostedAgent, exits_at_once_image: str) -> None:
    """Its entrypoint is not ours to run: the session lives until it is ended."""
    if hosted.settings.agent.backend != "docker":
        pytest.skip("the process backend has no images")
    spec = kernel_spec(image=exits_at_once_image)
    await hosted.begin(spec)
    assert await hosted.say(spec, "echo here") == "here"
    await hosted.end(spec)

"""Terminals on real ptys."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from actors.agent.runner_link import PtyOutput, RunnerLink
from backendai_ray.core.errors import InvalidParameter, KernelBusy, RunNotFound
from tests.support.waiting import wait_until

from .conftest import PATIENCE_S, Kernel


async def read_until(link: RunnerLink, name: str, text: bytes, after: int = 0) -> tuple[bytes, PtyOutput]:
    data = b""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        output = await link.pty_read(name, after=after, wait_s=1.0)
        data, after = data + output.data, output.offset
        if text in data:
            return data, output
        assert time.monotonic() < deadline, data
        assert output.exit_code is None, data


async def test_a_login_shell_in_the_working_directory(kernel: Kernel, link: RunnerLink) -> None:
    await link.open_pty("t", rows=40, cols=100)
    await link.pty_write("t", b"pwd; stty size; tty; echo $TERM; echo do''ne\n")
    data, _ = await read_until(link, "t", b"done\r\n")
    assert str(kernel.workdir).encode() in data
    assert b"40 100" in data
    assert b"/dev/pts/" in data
    assert b"xterm-256color" in data


async def test_resize_and_control_c_reach_the_program(link: RunnerLink) -> None:
    await link.open_pty(
        "t", command="trap 'stty size' WINCH; trap 'echo stopped' INT; echo on; while :; do sleep 0.05; done"
    )
    _, output = await read_until(link, "t", b"on\r\n")
    await link.pty_resize("t", rows=50, cols=132)
    _, output = await read_until(link, "t", b"50 132\r\n", output.offset)
    await link.pty_write("t", b"\x03")
    await read_until(link, "t", b"stopped\r\n", output.offset)
    with pytest.raises(InvalidParameter, match="rows"):
        await link.pty_resize("t", rows=0, cols=10)


async def test_a_client_that_comes_back_gets_what_it_missed(kernel: Kernel, link: RunnerLink) -> None:
    await link.open_pty("t", command="echo first; read x; echo got $x; read y")
    _, seen = await read_until(link, "t", b"first\r\n")
    link.close()
    again = await kernel.link()
    await again.open_pty("t")  # harmless
    await again.pty_write("t", b"hello\n")
    data, _ = await read_until(again, "t", b"got hello\r\n", seen.offset)
    assert b"first" not in data
    replay, _ = await read_until(again, "t", b"got hello\r\n", 0)
    assert replay.startswith(b"first\r\n")


async def test_the_end_tells_the_exit_code_after_the_output(link: RunnerLink) -> None:
    await link.open_pty("t", command="echo bye; exit 9")
    output = await link.pty_read("t", wait_s=5)
    data = output.data
    while output.exit_code is None:
        output = await link.pty_read("t", after=output.offset, wait_s=5)
        data += output.data
    assert (data, output.exit_code) == (b"bye\r\n", 9)


async def test_close_ends_every_process_of_the_terminal(kernel: Kernel, link: RunnerLink) -> None:
    await link.open_pty("t")
    mark = f"{os.getpid()}.25"
    await link.pty_write("t", f"trap '' HUP; (trap '' HUP; sleep 3{mark}) & sleep 4{mark}\n".encode())
    wait_until(lambda: len(sleeping(mark)) == 2, timeout_s=PATIENCE_S, story="two sleeps should run")
    await link.pty_close("t")
    wait_until(lambda: not sleeping(mark), timeout_s=PATIENCE_S, story="both should be killed")
    with pytest.raises(RunNotFound):
        await link.pty_read("t")
    await link.pty_close("t")


async def test_a_flood_is_bounded_and_a_slow_reader_misses_nothing_while_it_reads(link: RunnerLink) -> None:
    await link.open_pty("t", command="seq 1 400000; echo e''nd; read x")
    data, _ = await read_until(link, "t", b"end\r\n")
    assert data.split()[:400000] == [b"%d" % i for i in range(1, 400001)]
    late = await link.pty_read("t", after=0, wait_s=0)
    assert late.skipped > 0
    assert late.skipped + len(late.data) == late.offset


async def test_several_at_a_time_up_to_a_bound(link: RunnerLink) -> None:
    for i in range(16):
        await link.open_pty(f"t{i}", command="read x; echo $x")
    with pytest.raises(KernelBusy, match="16"):
        await link.open_pty("one-more")
    await asyncio.gather(*(link.pty_write(f"t{i}", b"value-%d\n" % i) for i in range(16)))
    for i in range(16):
        await read_until(link, f"t{i}", b"\r\nvalue-%d\r\n" % i)
    await link.pty_close("t0")
    await link.open_pty("one-more", command="echo room")
    await read_until(link, "one-more", b"room")


def sleeping(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"sleep" and words[1].endswith(mark.encode()):
            found.append(path.parent.name)
    return found

"""The shell runtime: the same protocol, with a shell that keeps its state."""

from __future__ import annotations

import time

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.execution import ExecMode

from .conftest import Kernel, KernelFactory, attach, run, until_output


@pytest.fixture
def kernel(start_kernel: KernelFactory) -> Kernel:
    return start_kernel(runtime="shell")


async def test_state_is_kept_between_cells(link: RunnerLink) -> None:
    assert (await run(link, "cd /tmp\nX=5\ntwice() { echo $(($1 * 2)); }")).exit_code == 0
    story = await run(link, "pwd; twice $X; echo problem >&2; false")
    assert (story.text(), story.text("stderr"), story.exit_code) == ("/tmp\n10\n", "problem\n", 1)


async def test_exit_is_told_and_the_shell_starts_again_where_it_was(link: RunnerLink) -> None:
    await run(link, "cd /tmp")
    assert (await run(link, "exit 7")).exit_code == 7
    assert (await run(link, "pwd")).text() == "/tmp\n"


async def test_a_syntax_error_does_not_end_the_shell(link: RunnerLink) -> None:
    await run(link, "X=kept")
    story = await run(link, "if then")
    assert story.exit_code
    assert "syntax error" in story.text("stderr").lower()
    assert (await run(link, "echo $X")).text() == "kept\n"


async def test_cells_cannot_read_the_next_cells(link: RunnerLink) -> None:
    assert (await run(link, "cat; read line; echo got:$line")).text() == "got:\n"
    assert (await run(link, "echo next")).text() == "next\n"


@pytest.mark.parametrize(
    "code",
    [
        "echo on; sleep 60; echo no",
        "echo on\nwhile true; do sleep 1; done",
        "echo on\nwhile :; do :; done\necho no",
        "f() { sleep 60; echo no; }\ng() { f; echo no; }\necho on\ng\necho no",
    ],
)
async def test_an_interrupt_leaves_the_cell_at_every_level(link: RunnerLink, code: str) -> None:
    await run(link, "X=kept")
    await link.execute("target", ExecMode.QUERY, code)
    await until_output(link, "target", "on")
    started = time.monotonic()
    assert await link.interrupt("target")
    story = await attach(link, "target")
    assert time.monotonic() - started < 30
    assert story.exit_code == 130
    assert story.text() == "on\n"
    assert (await run(link, "echo $X")).text() == "kept\n"


async def test_batch_and_completion_are_there_too(link: RunnerLink) -> None:
    assert (await run(link, "", ExecMode.BATCH, exec="echo batch")).text() == "batch\n"
    assert await link.complete("ec") == ()


async def test_large_output_arrives_whole(link: RunnerLink) -> None:
    assert (await run(link, "seq 1 300000")).text() == "".join(f"{i}\n" for i in range(1, 300001))

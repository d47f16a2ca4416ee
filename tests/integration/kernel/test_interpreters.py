"""The same runner on every Python that this machine has besides the agent's own."""

from __future__ import annotations

import pytest

from backendai_ray.core.errors import Unavailable
from backendai_ray.core.execution import ExecMode

from .conftest import KernelFactory, other_interpreters, run, until_output, version_of

INTERPRETERS = list(other_interpreters())


@pytest.mark.skipif(not INTERPRETERS, reason="needs a second Python interpreter")
@pytest.mark.parametrize("python", INTERPRETERS)
async def test_the_main_features_on_another_python(start_kernel: KernelFactory, python: str) -> None:
    try:
        kernel = start_kernel(python=python)
    except Unavailable as error:
        pytest.skip(f"needs a package index: {error}")
    link, info = await kernel.greet()
    assert info.python.startswith(version_of(python))
    assert (await run(link, "1+1")).text() == "2\n"
    assert (await run(link, "name = input('? ')\nname", answers=("x",))).text() == "? 'x'\n"
    story = await run(
        link, "import os, sys, subprocess\nprint('a')\nsubprocess.call(['echo', 'b'])\nprint('c', file=sys.stderr)\n1/0"
    )
    assert (story.text(), story.exit_code) == ("a\nb\n", 1)
    assert story.text("stderr").startswith('c\nTraceback (most recent call last):\n  File "<cell 3>"')
    assert "bai_runner" not in story.text("stderr")
    assert await link.complete("subproc") == ("subprocess",)
    await link.execute("flood", ExecMode.QUERY, "while True: print('x')")
    await until_output(link, "flood", "x")
    assert await link.interrupt("flood")
    await link.open_pty("t", command="echo terminal")
    assert (await link.pty_read("t", wait_s=5)).data == b"terminal\r\n"
    assert (await run(link, "", ExecMode.BATCH, exec="exit 3")).exit_code == 3
    assert (await run(link, "print('x' * 10_000_000)")).text() == "x" * 10_000_000 + "\n"
    if info.python >= "3.8":
        assert (await run(link, "import asyncio\nawait asyncio.sleep(0, 7)")).text() == "7\n"

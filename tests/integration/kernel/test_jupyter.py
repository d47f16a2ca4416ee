"""Jupyter kernels as runtimes: a real ipykernel (whose language is incidental) behind the runner's protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.execution import ExecMode, RunStatus
from tests.support.waiting import wait_until, wait_until_async

from .conftest import Kernel, KernelFactory, attach, run, until_output

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()

TCP_ONLY = """
import json, sys
connection = json.load(open(sys.argv[1]))
if connection['transport'] == 'ipc':
    sys.exit(0)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance(['-f', sys.argv[1]])
"""


@pytest.fixture
def kernel(start_kernel: KernelFactory) -> Kernel:
    return start_kernel(runtime="python3")


async def waits_for_input(link: RunnerLink, run_id: str) -> bool:
    return (await link.poll(run_id, after_seq=0, wait_s=0.1)).status is RunStatus.WAITING_INPUT


async def test_state_rich_output_completion_input_and_interrupts(link: RunnerLink) -> None:
    story = await run(link, "import sys\nx = 20\nprint('out')\nprint('err', file=sys.stderr)\nx + 1")
    assert (story.text(), story.text("stderr"), story.exit_code) == ("out\n21\n", "err\n", 0)
    code = f"""
from IPython.display import HTML, Image, Markdown, display
display(Image(data=__import__('base64').b64decode('{PNG}')))
display(Markdown('# title'))
HTML('<table>' + str(x) + '</table>')"""
    story = await run(link, code)
    assert story.records == [
        ("media", ("image/png", PNG)),
        ("media", ("text/markdown", "# title")),
        ("html", "<table>20</table>"),
    ]
    story = await run(link, "1 / 0")
    assert story.exit_code == 1
    assert "ZeroDivisionError: division by zero" in story.text("stderr")
    assert "\x1b" not in story.text("stderr")
    await run(link, "xylophone = 1")
    assert await link.complete("print(xylo") == ("xylophone",)
    assert "sys.maxsize" in await link.complete("sys.maxs")
    story = await run(
        link, "import os\nos.system('echo from a child')\nname = input('name? ')\nprint('hi', name)", answers=("Ada",)
    )
    assert "from a child\n" in story.text()
    assert story.text().endswith("name? hi Ada\n")

    await run(link, "x = 'kept'")
    for code in ("print('on', flush=True)\nimport time\ntime.sleep(60)", "print('on', flush=True)\ninput()"):
        run_id = f"target-{len(code)}"
        await link.execute(run_id, ExecMode.QUERY, code)
        await until_output(link, run_id, "on")
        if "input" in code:
            await wait_until_async(partial(waits_for_input, link, run_id))
        assert await link.interrupt(run_id)
        story = await attach(link, run_id)
        assert story.exit_code == 130
        assert "KeyboardInterrupt" in story.text("stderr")
    assert (await run(link, "x")).text() == "'kept'\n"


async def test_a_dead_kernel_is_told_and_starts_again(link: RunnerLink) -> None:
    assert (await run(link, "x = 1\nimport os\npid = os.getpid()\npid")).exit_code == 0
    story = await run(link, "import signal\nos.kill(pid, signal.SIGKILL)")
    assert story.exit_code == 128 + signal.SIGKILL
    assert "ended (signal 9); the next run starts it again" in story.text("stderr")
    story = await run(link, "import os\nprint(os.getpid())\nx")
    assert "NameError" in story.text("stderr")
    os.kill(int(story.text()), signal.SIGKILL)  # while nothing runs
    # All of its threads are gone: before the last one is, nobody is told of its end.
    there = Path(f"/proc/{story.text().strip()}")
    await asyncio.to_thread(
        wait_until, lambda: ") Z " in (there / "stat").read_text() and len(list((there / "task").iterdir())) == 1
    )
    story = await run(link, "2 + 2")
    assert story.text() == "4\n"
    assert "had ended (signal 9); it was started again" in story.text("stderr")


def add_kernelspec(folder: Path, name: str, script: str) -> None:
    """A kernel whose program is a piece of Python; it gets the connection file as argument."""
    spec = {
        "argv": ["python3", "-c", script, "{connection_file}"],
        "interrupt_mode": "message",
        "env": {"A": "${HOME}!"},
    }
    (folder / "kernels" / name).mkdir(parents=True)
    (folder / "kernels" / name / "kernel.json").write_text(json.dumps(spec))


async def test_a_kernel_without_unix_sockets_that_is_interrupted_by_message(
    start_kernel: KernelFactory, tmp_path: Path
) -> None:
    add_kernelspec(tmp_path, "tcp-only", TCP_ONLY)
    link = await start_kernel(runtime="tcp-only", JUPYTER_PATH=str(tmp_path), HOME="/home").link()
    assert (await run(link, "import os; print(os.environ['A'], end='')")).text() == "/home!"
    await link.execute("target", ExecMode.QUERY, "print('on', flush=True)\nimport time\ntime.sleep(60)")
    await until_output(link, "target", "on")
    assert await link.interrupt("target")
    assert (await attach(link, "target")).exit_code == 130


async def test_a_kernel_that_cannot_start_says_why(start_kernel: KernelFactory, tmp_path: Path) -> None:
    add_kernelspec(tmp_path, "broken", "import sys; sys.exit('no licence')")
    link = await start_kernel(runtime="broken", JUPYTER_PATH=str(tmp_path)).link()
    story = await run(link, "1")
    assert story.exit_code == 1
    assert "no licence" in story.text("stderr")
    assert "the kernel of the runtime 'broken' does not start: exit code 1" in story.text("stderr")


async def test_an_unknown_runtime_names_those_there_are(start_kernel: KernelFactory) -> None:
    link = await start_kernel(runtime="cobol").link()
    story = await run(link, "DISPLAY 1")
    assert story.exit_code == 127
    assert "there is no runtime 'cobol' here; there are: python, shell, python3" in story.text("stderr")

"""Jupyter kernels as runtimes: a real ipykernel (whose language is incidental) behind the runner's protocol."""

from __future__ import annotations

import base64
import os
import signal

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.execution import ExecMode

from .conftest import Kernel, KernelFactory, attach, run, until_output

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()


@pytest.fixture
def kernel(start_kernel: KernelFactory) -> Kernel:
    return start_kernel(runtime="python3")


async def test_cells_share_their_state_and_show_rich_output(link: RunnerLink) -> None:
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


async def test_an_interrupt_keeps_the_state(link: RunnerLink) -> None:
    await run(link, "x = 'kept'")
    for code in ("print('on', flush=True)\nimport time\ntime.sleep(60)", "print('on', flush=True)\ninput()"):
        run_id = f"target-{len(code)}"
        await link.execute(run_id, ExecMode.QUERY, code)
        await until_output(link, run_id, "on")
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
    story = await run(link, "2 + 2")
    assert story.text() == "4\n"
    assert "had ended (signal 9); it was started again" in story.text("stderr")


async def test_an_unknown_runtime_names_those_there_are(start_kernel: KernelFactory) -> None:
    link = await start_kernel(runtime="cobol").link()
    story = await run(link, "DISPLAY 1")
    assert story.exit_code == 127
    assert "there is no runtime 'cobol' here; there are: python, shell, python3" in story.text("stderr")

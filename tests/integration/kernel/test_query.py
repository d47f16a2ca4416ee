"""Query mode: Python cells in one namespace."""

from __future__ import annotations

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.execution import ExecMode, RunStatus

from .conftest import run, until_output


async def test_echoes_the_last_expression(link: RunnerLink) -> None:
    output = await link.run("first", ExecMode.QUERY, "1+1")
    assert output.console == (("stdout", "2\n"),)
    assert (output.status, output.exit_code) == (RunStatus.FINISHED, 0)


async def test_state_is_kept_and_underscore_is_the_last_value(link: RunnerLink) -> None:
    await run(link, "x = 20\ndef double(n):\n    return 2 * n")
    assert (await run(link, "double(x)")).text() == "40\n"
    assert (await run(link, "_ + 2")).text() == "42\n"


async def test_nothing_is_echoed_for_statements_and_none(link: RunnerLink) -> None:
    assert (await run(link, "y = 1")).records == []
    assert (await run(link, "None")).records == []
    assert (await run(link, "")).exit_code == 0


async def test_stdout_and_stderr_keep_their_order(link: RunnerLink) -> None:
    code = "import sys\nfor i in range(3):\n    print('out', i)\n    print('err', i, file=sys.stderr)"
    expected = []
    for i in range(3):
        expected += [("stdout", f"out {i}\n"), ("stderr", f"err {i}\n")]
    assert (await run(link, code)).records == expected


async def test_output_of_subprocesses_and_of_c_code_is_captured_in_place(link: RunnerLink) -> None:
    code = (
        "import os, subprocess, ctypes\nprint('one')\nsubprocess.run(['echo', 'two'])\nprint('three')\n"
        "os.system('echo four >&2')\nctypes.CDLL(None).puts(b'five')"
    )
    story = await run(link, code + ";None")
    assert story.text() == "one\ntwo\nthree\nfive\n"
    assert story.text("stderr") == "four\n"


async def test_late_output_of_a_child_is_drained_before_the_end(link: RunnerLink) -> None:
    story = await run(link, "import os\nos.write(1, b'x' * 60000)\nNone")
    assert len(story.text()) == 60000


async def test_a_traceback_shows_user_frames_only(link: RunnerLink) -> None:
    story = await run(link, "def broken():\n    raise ValueError('no')\nbroken()")
    assert story.exit_code == 1
    assert story.text("stderr").splitlines()[0] == "Traceback (most recent call last):"
    assert "bai_runner" not in story.text("stderr")
    assert "    raise ValueError('no')\n" in story.text("stderr")
    assert story.text("stderr").endswith("ValueError: no\n")


async def test_a_syntax_error_is_shown_with_its_line(link: RunnerLink) -> None:
    story = await run(link, "x = 1\ndef f(:\n  pass")
    assert story.exit_code == 1
    assert "SyntaxError" in story.text("stderr")
    assert "def f(:" in story.text("stderr")
    assert "bai_runner" not in story.text("stderr")


@pytest.mark.parametrize(
    ("code", "exit_code"), [("import sys; sys.exit(3)", 3), ("exit()", 0), ("raise SystemExit('bye')", 1)]
)
async def test_exit_ends_the_run_and_not_the_session(link: RunnerLink, code: str, exit_code: int) -> None:
    await run(link, "kept = 'still here'")
    assert (await run(link, code)).exit_code == exit_code
    assert (await run(link, "kept")).text() == "'still here'\n"


async def test_top_level_await_keeps_one_loop(link: RunnerLink) -> None:
    await run(
        link,
        "import asyncio\nevent = asyncio.Event()\ntask = asyncio.ensure_future(event.wait())\nawait asyncio.sleep(0)",
    )
    assert (await run(link, "event.set()\nawait task")).text() == "True\n"


async def test_future_statements_hold_for_later_cells(link: RunnerLink) -> None:
    await run(link, "from __future__ import annotations")
    assert (await run(link, "def f(x: Unknown): pass\nf.__annotations__")).text() == "{'x': 'Unknown'}\n"


async def test_functions_of_cells_can_be_pickled_and_inspected(link: RunnerLink) -> None:
    await run(link, "def named(x):\n    return x + 1")
    assert (await run(link, "import pickle, inspect\npickle.loads(pickle.dumps(named))(1)")).text() == "2\n"
    assert (await run(link, "print(inspect.getsource(named))")).text().startswith("def named(x):\n    return x + 1")


async def test_multibyte_characters_split_over_writes_arrive_whole(link: RunnerLink) -> None:
    code = (
        "import os, sys, time\ndata = '한글€🙂'.encode()\n"
        "for b in data:\n    os.write(1, bytes([b]))\n    time.sleep(0.004)\n"
        "for b in data:\n    sys.stdout.buffer.write(bytes([b]))\nos.write(1, b'\\xff!')"
    )
    story = await run(link, code + "\nNone")
    assert story.text() == "한글€🙂한글€🙂\ufffd!"


async def test_text_that_has_no_utf8_is_escaped(link: RunnerLink) -> None:
    assert (await run(link, "print('a\\ud800b')")).text() == "a\\ud800b\n"


async def test_input_asks_the_client(link: RunnerLink) -> None:
    story = await run(link, "name = input('Name? ')\nprint('Hello', name)", answers=("김",))
    waiting = next(output for output in story.outputs if output.status is RunStatus.WAITING_INPUT)
    assert waiting.options == {"is_password": False}
    assert story.text() == "Name? Hello 김\n"


async def test_getpass_asks_for_a_password(link: RunnerLink) -> None:
    story = await run(link, "from getpass import getpass\nlen(getpass())", answers=("secret",))
    waiting = next(output for output in story.outputs if output.status is RunStatus.WAITING_INPUT)
    assert waiting.options == {"is_password": True}
    assert story.text() == "Password: 6\n"


async def test_completion_on_the_live_namespace(link: RunnerLink) -> None:
    await run(link, "import collections\nmy_variable = 1\nclass Thing:\n    attribute = 1\nthing = Thing()")
    assert await link.complete("print(my_v") == ("my_variable",)
    assert "thing.attribute" in await link.complete("x = thing.att")
    assert "collections.OrderedDict" in await link.complete("collections.Ord and more", cursor=15)
    assert "itertools" in await link.complete("import itert")
    assert await link.complete("nothing_like_this") == ()


async def test_completion_while_busy(link: RunnerLink) -> None:
    await run(link, "import time\nvisible = 1")
    await link.execute("busy", ExecMode.QUERY, "print('on')\ntime.sleep(30)")
    await until_output(link, "busy", "on")
    assert await link.complete("visi") == ("visible",)
    assert await link.interrupt("busy")


async def test_rich_values(link: RunnerLink) -> None:
    code = (
        "class Rich:\n    def __init__(self, **k): self.__dict__.update(k)\n"
        "class Html:\n    def _repr_html_(self): return '<b>x</b>'\n"
        "class Png:\n    def _repr_html_(self): return 'no'\n    def _repr_png_(self): return b'\\x89PNG'\n"
        "class Broken:\n    def _repr_html_(self): 1/0\n    def __repr__(self): return 'plain'\n"
        "print('before')\ndisplay(Html(), 'text', Broken())\nPng()"
    )
    assert (await run(link, code)).records == [
        ("stdout", "before\n"),
        ("html", "<b>x</b>"),
        ("stdout", "text\nplain\n"),
        ("media", ("image/png", "iVBORw==")),
    ]


async def test_a_class_is_not_taken_for_its_instance(link: RunnerLink) -> None:
    story = await run(link, "class Html:\n    def _repr_html_(self): return 'x'\nHtml")
    assert story.records == [("stdout", "<class '__main__.Html'>\n")]


async def test_figures_are_shown_at_the_end_of_a_run(link: RunnerLink) -> None:
    """With a stand-in for matplotlib that has what the backend uses, so that the test needs no plotting library."""
    await run(link, FAKE_MATPLOTLIB)
    story = await run(link, "import matplotlib.pyplot as plt\nplt.figures.append(1)\nprint('drawn')")
    assert story.records == [("stdout", "drawn\n"), ("media", ("image/png", "UE5H"))]
    assert (await run(link, "1")).records == [("stdout", "1\n")]


FAKE_MATPLOTLIB = '''
import os
os.makedirs("matplotlib")
open("matplotlib/__init__.py", "w").write("rcParams = {}\\n")
open("matplotlib/pyplot.py", "w").write("""
import matplotlib
figures = []
class Figure:
    def get_axes(self): return [1]
    def savefig(self, file, **_): file.write(b"PNG")
def get_backend(): return matplotlib.rcParams["backend"]
def get_fignums(): return list(figures)
def figure(number): return Figure()
def close(figure): figures.clear()
""")
'''

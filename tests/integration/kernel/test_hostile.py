"""User code that does what it should not: the runner goes on serving."""

from __future__ import annotations

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.errors import KernelUnreachable
from backendai_ray.core.execution import ExecMode

from .conftest import PATIENCE_S, Kernel, run, until_output


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(1); os.close(2)",
        "import sys; sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
        "import sys; sys.stdout = None; sys.stderr = None",
        "import sys; sys.stdout = object()",
        "import sys; del sys.stdout",
        "import builtins; del builtins.repr",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import sys; sys.displayhook = lambda value: 1/0",
        "import sys; sys.excepthook = None",
        "class Bad:\n    def __repr__(self): raise RuntimeError('x')\nBad()",
        "class Bad(Exception):\n    def __str__(self): raise RuntimeError('x')\nraise Bad()",
        "def deep(): print('x', end=''); deep()\ndeep()",
        "raise BaseException('base')",
        "import sys; sys.setrecursionlimit(60)\ndef deep(): deep()\ndeep()",
        "import sys; sys.modules.clear()",
        "import os; os.chdir('/'); os.environ.clear()",
        "import threading; threading.Thread(target=lambda: 1/0).start()",
    ],
)
async def test_the_session_survives(link: RunnerLink, code: str) -> None:
    await run(link, code)
    await run(link, "import sys, builtins, operator; sys.setrecursionlimit(1000)")
    story = await run(link, "import os; written = os.write(1, b'alive')")
    assert story.text().endswith("alive")
    assert story.exit_code == 0


async def test_a_forked_child_prints_into_the_run(link: RunnerLink) -> None:
    code = (
        "import os\nprint('parent before')\npid = os.fork()\nif pid == 0:\n    print('child')\n    os._exit(7)\n"
        "print('status', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    story = await run(link, code)
    assert story.text() == "parent before\nchild\nstatus 7\n"


async def test_a_forked_child_that_returns_does_not_become_a_second_runner(link: RunnerLink) -> None:
    story = await run(
        link, "import os\nwho = os.fork()\nif who: os.waitpid(who, 0)\nprint('child' if not who else 'parent')"
    )
    assert story.text() == "child\nparent\n"
    assert (await run(link, "1")).text() == "1\n"


async def test_multiprocessing_works_in_both_ways(link: RunnerLink) -> None:
    code = (
        "import multiprocessing\nfor method in ('fork', 'spawn'):\n"
        "    with multiprocessing.get_context(method).Pool(2) as pool:\n        print(method, pool.map(abs, [-1, -2]))"
    )
    assert (await run(link, code)).text() == "fork [1, 2]\nspawn [1, 2]\n"


async def test_the_end_of_the_runner_is_noticed_even_if_a_forked_child_lives_on(
    kernel: Kernel, link: RunnerLink
) -> None:
    await run(link, "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)")
    with pytest.raises(KernelUnreachable):
        await link.run("dead", ExecMode.QUERY, "os._exit(5)", wait_s=15)
    assert not link.alive
    assert kernel.process is not None
    assert kernel.process.wait(PATIENCE_S) == 5


async def test_output_of_threads_between_runs_opens_the_next_run(link: RunnerLink) -> None:
    code = (
        "import threading, time\ngo, gone = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait()\n    print('from a thread')\n    gone.set()\n"
        "threading.Thread(target=late, daemon=True).start()"
    )
    await run(link, code)
    await run(link, "threading.Timer(0.05, go.set).start()")
    story = await run(link, "gone.wait(10)\nprint('done')")
    assert story.text() == "from a thread\ndone\n"


async def test_a_huge_repr_passes_through_a_small_buffer(start_kernel: object) -> None:
    kernel: Kernel = start_kernel(buffer_bytes=1 << 20)  # type: ignore[operator]
    link = await kernel.link()
    story = await run(link, "'x' * (8 << 20)")
    assert len(story.text()) == (8 << 20) + 3


async def test_the_token_does_not_show_in_the_environment(link: RunnerLink) -> None:
    assert (
        await run(link, "import os\n[name for name in os.environ if 'TOKEN' in name and 'BAI' in name]")
    ).text() == "[]\n"


async def test_user_code_does_not_see_our_zmq(link: RunnerLink) -> None:
    story = await run(link, "import sys\n[name for name in sys.modules if name.split('.')[0] == 'zmq']")
    assert story.text() == "[]\n"


async def test_a_wrong_token_is_refused(kernel: Kernel) -> None:
    with pytest.raises(KernelUnreachable, match="token"):
        await kernel.link("another token")


async def test_the_runner_answers_while_c_code_holds_the_main_thread(link: RunnerLink) -> None:
    await link.execute("busy", ExecMode.QUERY, "import time\nprint('on')\ntime.sleep(30)")
    await until_output(link, "busy", "on")
    assert (await link.status(timeout_s=PATIENCE_S)).active_run == "busy"
    assert await link.interrupt("busy")


async def test_finalizers_and_signal_handlers_may_print_at_any_moment(link: RunnerLink) -> None:
    """They run in whatever the main thread or the service thread is doing, the sink's own code included."""
    code = (
        "import gc, signal, sys\n"
        "class Loud:\n    def __init__(self): self.me = self\n"
        "    def __del__(self): print('.' * 300, file=sys.stderr)\n"
        "gc.set_threshold(20, 1, 1)\n"
        "_ = signal.signal(signal.SIGALRM, lambda *_: print('!', file=sys.stderr))\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\n"
        "for i in range(20000):\n    Loud()\n    print(i)\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0)\ngc.set_threshold(700, 10, 10)"
    )
    story = await run(link, code)
    assert story.exit_code == 0
    assert story.text() == "".join(f"{i}\n" for i in range(20000))
    assert "!" in story.text("stderr")


async def test_user_code_may_use_its_own_zmq(link: RunnerLink) -> None:
    code = (
        "import zmq, zmq.asyncio\ncontext = zmq.Context()\na, b = context.socket(zmq.PAIR), context.socket(zmq.PAIR)\n"
        "port = a.bind_to_random_port('tcp://127.0.0.1')\nb.connect('tcp://127.0.0.1:%d' % port)\nb.send(b'hi')\n"
        "print(a.recv())\ntry: a.recv(zmq.NOBLOCK)\nexcept zmq.Again: print('again')\n"
        "context.destroy(0)"
    )
    story = await run(link, code)
    assert (story.text(), story.exit_code) == ("b'hi'\nagain\n", 0), story.records

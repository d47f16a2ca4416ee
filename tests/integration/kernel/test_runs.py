"""Runs: identity, order, acknowledgement, interrupts and floods."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from actors.agent.runner_link import RunnerLink
from backendai_ray.core.errors import Conflict, InvalidParameter, KernelBusy, KernelUnreachable, RunNotFound
from backendai_ray.core.execution import ExecMode, RunStatus
from tests.support.waiting import wait_until

from .conftest import PATIENCE_S, Kernel, KernelFactory, Story, attach, follow, run, until_output

INTERRUPTED = 130


async def test_the_same_run_id_never_runs_twice(link: RunnerLink) -> None:
    code = "count = globals().get('count', 0) + 1\ncount"
    assert (await run(link, code, run_id="once")).text() == "1\n"
    assert (await run(link, code, run_id="once")).exit_code == 0
    assert (await run(link, "count")).text() == "1\n"


async def test_executing_a_running_id_attaches_to_it(link: RunnerLink) -> None:
    await link.execute("same", ExecMode.QUERY, "input('a')")
    first, second = await asyncio.gather(
        until_output(link, "same", "a"), link.run("same", ExecMode.QUERY, "print('never')")
    )
    assert first.console == second.console == (("stdout", "a"),)
    await link.send_input("same", "x")
    assert (await attach(link, "same", first.seq)).text() == "'x'\n"


async def test_runs_are_serial_and_in_order(link: RunnerLink) -> None:
    await run(link, "import time\nseen = []")
    for i in range(5):
        await link.execute(f"q{i}", ExecMode.QUERY, f"time.sleep(0.02)\nseen.append({i})")
    assert (await link.poll("q4", wait_s=0.0)).status is RunStatus.CONTINUED
    assert (await run(link, "seen")).text() == "[0, 1, 2, 3, 4]\n"


async def test_a_full_queue_is_told(link: RunnerLink) -> None:
    await link.execute("block", ExecMode.QUERY, "input()")
    await until_waiting(link, "block")
    for i in range(16):
        await link.execute(f"more{i}", ExecMode.QUERY, "0")
    with pytest.raises(KernelBusy):
        await link.execute("too many", ExecMode.QUERY, "0")
    status = await link.status()
    assert status.active_run == "block"
    assert status.queued_runs[:2] == ("more0", "more1")
    await link.send_input("block", "")
    await attach(link, "more0")


async def test_unknown_runs_and_bad_requests_are_told(link: RunnerLink) -> None:
    with pytest.raises(RunNotFound, match="never"):
        await link.poll("never")
    with pytest.raises(RunNotFound):
        await link.send_input("never", "x")
    await run(link, "1", run_id="ended")
    with pytest.raises(Conflict):
        await link.send_input("ended", "x")
    with pytest.raises(InvalidParameter, match="mode"):
        await link.execute("a", ExecMode.INPUT, "x")
    with pytest.raises(InvalidParameter, match="run_id"):
        await link.execute("", ExecMode.QUERY, "x")
    assert await link.interrupt("ended") is False


async def test_unacknowledged_output_is_told_again(link: RunnerLink) -> None:
    await run(link, "1", run_id="warm-up")
    first = await link.run("keep", ExecMode.QUERY, "print('x' * 10)\n1/0")
    again = await attach(link, "keep")
    assert again.outputs[0].console[: len(first.console)] == first.console
    assert (await link.poll("keep", after_seq=again.end.seq)).console == ()
    assert (await link.poll("keep", after_seq=0)).exit_code == 1


async def test_polls_of_one_run_at_the_same_time_see_the_same(link: RunnerLink) -> None:
    await link.execute(
        "shared", ExecMode.QUERY, "import time\nfor i in range(20):\n    print(i)\n    time.sleep(0.002)"
    )
    stories = await asyncio.gather(*(attach(link, "shared") for _ in range(3)))
    # One reader's acknowledgement may be ahead of another's position, never the other way round.
    assert all(story.end.status is RunStatus.FINISHED for story in stories)
    assert max((story.text() for story in stories), key=len) == "".join(f"{i}\n" for i in range(20))


async def test_a_poll_answers_after_its_wait(link: RunnerLink) -> None:
    await link.execute("quiet", ExecMode.QUERY, "input()")
    await until_waiting(link, "quiet")
    await link.send_input("quiet", "")
    await link.execute("quiet2", ExecMode.QUERY, "import time\ntime.sleep(30)")
    started = time.monotonic()
    assert (await link.poll("quiet2", wait_s=0.2)).status is RunStatus.CONTINUED
    assert 0.15 < time.monotonic() - started < PATIENCE_S
    await link.interrupt()


INTERRUPTIBLE = {
    "sleep": "import time\nprint('on')\ntime.sleep(60)",
    "loop": "print('on')\nwhile True: pass",
    "sorting in C": "import itertools\nprint('on')\nfor _ in itertools.count(): sorted(range(1000))",
    "input": "print('on')\ninput()",
    "lock": "import threading\nprint('on')\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "subprocess": "import subprocess\nprint('on')\nsubprocess.run(['sleep', '60'])",
    "await": "import asyncio\nprint('on')\nawait asyncio.sleep(60)",
    "flood": "print('on')\nwhile True: print('y' * 100)",
    "ignored before": "import signal, time\nprint('on')\ntime.sleep(60)",
}


@pytest.mark.parametrize("name", INTERRUPTIBLE)
async def test_an_interrupt_ends_the_run_and_not_the_session(link: RunnerLink, name: str) -> None:
    await run(link, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nkept = 'kept'")
    await link.execute("target", ExecMode.QUERY, INTERRUPTIBLE[name])
    await until_output(link, "target", "on")
    assert await link.interrupt("target")
    story = await attach(link, "target")
    assert story.exit_code == INTERRUPTED
    assert story.text("stderr").endswith("KeyboardInterrupt\n")
    assert "bai_runner" not in story.text("stderr")
    assert (await run(link, "kept")).text() == "'kept'\n"


async def test_an_interrupt_arrives_though_the_starter_had_it_blocked(start_kernel: KernelFactory) -> None:
    """1. Ray's workers block SIGINT. 2. The mask is inherited by what they start. 3. Nothing could be interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        kernel = start_kernel()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    link = await kernel.link()
    await link.execute("target", ExecMode.QUERY, "print('on', flush=True)\nimport time\ntime.sleep(60)", {})
    await until_output(link, "target", "on")
    assert await link.interrupt("target")
    assert "KeyboardInterrupt" in (await attach(link, "target")).text("stderr")


async def test_an_interrupt_between_runs_does_no_harm(link: RunnerLink) -> None:
    for _ in range(20):
        await link.interrupt()
        assert (await run(link, "1")).exit_code == 0


async def test_a_storm_of_interrupts_leaves_the_runner_whole(link: RunnerLink) -> None:
    for i in range(10):
        await link.execute(f"storm{i}", ExecMode.QUERY, "while True: print('x')")
        while not (await link.poll(f"storm{i}", after_seq=0, wait_s=0.01)).exit_code:
            await link.interrupt(f"storm{i}")
    assert (await run(link, "'fine'")).text() == "'fine'\n"


async def test_a_flood_with_a_reader_loses_nothing(start_kernel: KernelFactory) -> None:
    link = await start_kernel(buffer_bytes=1 << 20).link()
    story = await run(link, "for i in range(300000): print(i)")
    assert story.text() == "".join(f"{i}\n" for i in range(300000))
    assert story.exit_code == 0


async def test_a_flood_of_a_subprocess_with_a_reader_loses_nothing(start_kernel: KernelFactory) -> None:
    link = await start_kernel(buffer_bytes=1 << 20).link()
    story = await run(link, "import os\nstatus = os.system('seq 1 500000')")
    assert story.text() == "".join(f"{i}\n" for i in range(1, 500001))


async def test_a_flood_without_a_reader_is_cut_marked_and_runs_on(start_kernel: KernelFactory) -> None:
    kernel = start_kernel(buffer_bytes=1 << 20)
    link = await kernel.link()
    code = "for i in range(200000): print('%099d' % i)\nopen('ended', 'w').close()\ninput()\nprint('after')"
    await link.execute("flood", ExecMode.QUERY, code)
    wait_until((kernel.workdir / "ended").exists, timeout_s=30, story="the program should run on without a reader")
    assert resident_bytes(kernel.pid) < 120 << 20
    story = await attach_answering(link, "flood", "x")
    head, marker, tail = story.text().partition("\n[... ")
    cut, _, rest = tail.partition(" bytes of output were cut: nobody was reading and the buffer of 1 MiB was full")
    assert len(head) > 1_000_000
    assert head.splitlines()[0] == "0" * 99
    assert marker
    assert len(head) + int(cut) == 200000 * 100
    assert rest == " ...]\nafter\n"


async def test_a_program_that_prints_without_end_stays_small_and_interruptible(start_kernel: KernelFactory) -> None:
    kernel = start_kernel(buffer_bytes=1 << 20)
    link = await kernel.link()
    await link.execute(
        "endless", ExecMode.QUERY, "import os\nwhile True: os.write(1, b'z' * 65536); print('y' * 65536)"
    )
    for _ in range(50):
        await link.poll("endless", after_seq=10**9, wait_s=0.05)
    assert resident_bytes(kernel.pid) < 150 << 20
    assert await link.interrupt("endless")
    assert (await attach(link, "endless", 10**9)).exit_code == INTERRUPTED


async def test_output_after_the_readers_death_reaches_its_successor(kernel: Kernel) -> None:
    first = await kernel.link()
    await first.execute("long", ExecMode.QUERY, "print('one')\nopen('on', 'w').close()\ninput()\nprint('two')")
    seen = await until_output(first, "long", "one")
    first.close()
    with pytest.raises(KernelUnreachable):
        await first.status()
    second = await kernel.link()
    assert (await second.status()).active_run == "long"
    await second.execute("long", ExecMode.QUERY, "print('twice')")
    await until_waiting(second, "long")
    await second.send_input("long", "")
    story = await attach(second, "long", seen.seq)
    assert story.text() == "two\n"


async def test_the_death_of_the_runner_fails_a_waiting_poll_at_once(kernel: Kernel, link: RunnerLink) -> None:
    await link.execute("wait", ExecMode.QUERY, "input()")
    await until_waiting(link, "wait")
    await link.send_input("wait", "")
    await link.execute("wait2", ExecMode.QUERY, "import time\ntime.sleep(60)")
    poll = asyncio.ensure_future(link.poll("wait2", wait_s=30))
    await link.status()
    started = time.monotonic()
    os.kill(kernel.pid, signal.SIGKILL)
    with pytest.raises(KernelUnreachable, match="has ended"):
        await poll
    assert time.monotonic() - started < 20.0
    assert not link.alive


async def test_nobody_there_is_told_in_time(tmp_path: Path) -> None:
    link = RunnerLink(tmp_path / "no.sock", token="x")
    with pytest.raises(KernelUnreachable):
        await link.connect(0.1)


async def test_one_process_may_have_very_many_links(kernel: Kernel) -> None:
    links = [await kernel.link() for _ in range(600)]
    assert (await links[0].status()).active_run is None
    assert (await links[-1].status()).active_run is None


async def test_a_stopped_runner_is_told_in_time(kernel: Kernel, link: RunnerLink) -> None:
    os.kill(kernel.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(kernel.pid) == "T")
    with pytest.raises(KernelUnreachable, match="no answer"):
        await link.status(timeout_s=0.2)
    os.kill(kernel.pid, signal.SIGCONT)
    assert (await link.status()).active_run is None


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="107"):
        RunnerLink(tmp_path / ("x" * 100) / "runner.sock", token="x")


async def test_shutdown_ends_the_process_whatever_it_does(kernel: Kernel, link: RunnerLink) -> None:
    await run(link, "import atexit\n_ = atexit.register(lambda: open('left', 'w').close())")
    await link.execute(
        "busy", ExecMode.QUERY, "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: break"
    )
    await link.shutdown()
    assert kernel.process is not None
    assert kernel.process.wait(PATIENCE_S) == 0
    assert (kernel.workdir / "left").exists()


async def until_waiting(link: RunnerLink, run_id: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (await link.poll(run_id, after_seq=0)).status is not RunStatus.WAITING_INPUT:
        assert time.monotonic() < deadline, "it does not ask for input"


async def attach_answering(link: RunnerLink, run_id: str, answer: str) -> Story:
    return await follow(link, [await link.poll(run_id)], [answer])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

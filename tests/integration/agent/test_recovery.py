"""An agent is killed (SIGKILL, its process group with it) at bad moments, and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from actors.agent.backends.process.layout import find_boxes
from backendai_ray.core.execution import ExecMode, RunStatus
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from tests.integration.agent.hosting import HostedAgent, kernel_spec, text_of

pytestmark = pytest.mark.kill

COUNT = """
import time
for number in range(60):
    print(number, flush=True)
    time.sleep(0.05)
"""


async def inspected(hosted: HostedAgent, spec: KernelSpec) -> KernelFact:
    inspection = await hosted.call("inspect")
    facts: list[KernelFact] = [fact for fact in inspection.kernels if fact.kernel_id == spec.kernel_id]
    assert len(facts) == 1
    return facts[0]


async def test_code_runs_on_and_its_output_arrives(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.run(spec, "kept = 'kept'")
    request = hosted.request(spec, COUNT, run_id="count", wait_s=0.3)
    output = await hosted.call("execute", request)
    console, seq = output.console, output.seq
    await hosted.kill()
    await hosted.start()
    assert (await inspected(hosted, spec)).status is Status.RUNNING
    follow = replace(request, mode=ExecMode.CONTINUE, code="", after_seq=seq)
    while output.status is RunStatus.CONTINUED:
        output = await hosted.call("execute", follow)
        console += output.console
        follow = replace(follow, after_seq=output.seq)
    text = "".join(str(piece) for _, piece in console)
    assert text == "".join(f"{number}\n" for number in range(60))
    # The order given again (its answer was lost) does not run it again.
    again = await hosted.run(spec, COUNT, run_id="count")
    assert "0\n1\n" not in text_of(again)
    assert await hosted.say(spec, "print(kept)") == "kept"
    await hosted.end(spec)


async def test_end_while_the_agent_is_away(hosted: HostedAgent) -> None:
    spec, memory = kernel_spec(), kernel_spec(memory_bytes=128 * 2**20)
    await hosted.begin(spec, memory)
    die = "import os, threading\nthreading.Timer({}, lambda: os._exit(5)).start()"
    await hosted.run(spec, die.format(1))
    eat = "x = []\nwhile True: x.append(bytearray(b'1') * 2**20)"
    await hosted.run(
        memory, f"import threading\ndef eat():\n  {eat!r}\n  exec({eat!r})\nthreading.Timer(1, eat).start()"
    )
    await hosted.kill()
    await asyncio.sleep(2)
    await hosted.start()
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert (fact.reason, fact.exit_code) == ("self-terminated", 5)
    fact = await hosted.until_status(memory, Status.TERMINATED)
    assert (fact.reason, fact.message) == ("out-of-memory", "killed for memory: the limit is 128m")
    await hosted.call("acknowledge", [spec.kernel_id, memory.kernel_id])


async def test_startup_command_goes_on(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.call("run_startup", spec.kernel_id, "echo once >> starts; sleep 2; cat starts; exit 6", None)
    await asyncio.sleep(0.5)
    await hosted.kill()
    await hosted.start()
    await hosted.until(lambda: (f := hosted.last(spec)) and f.startup_exit_code == 6)
    await hosted.call("run_startup", spec.kernel_id, "echo once >> starts; sleep 2; cat starts; exit 6", None)
    assert await hosted.say(spec, "print(open('starts').read())") == "once"
    await hosted.end(spec)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.12, 0.25])
async def test_killed_while_kernels_are_made(hosted: HostedAgent, delay_s: float) -> None:
    """Recorded orders are carried out, each exactly once, whatever moment the agent is killed at."""
    specs = [kernel_spec(core, bootstrap_script="echo x >> starts") for core in (0, 1)]
    await hosted.call("create_kernels", specs)
    await asyncio.sleep(delay_s)
    await hosted.kill()
    hosted.facts.clear()
    await hosted.start()
    for spec in specs:
        await hosted.until_status(spec, Status.RUNNING)
        assert await hosted.say(spec, "print(open('starts').read().split())") == "['x']"
    await hosted.end(*specs)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.06])
async def test_killed_while_kernels_are_ended(hosted: HostedAgent, delay_s: float) -> None:
    specs = [kernel_spec(core) for core in (0, 1)]
    await hosted.begin(*specs)
    await hosted.call("destroy_kernels", [s.kernel_id for s in specs], Reason.USER_REQUESTED)
    await asyncio.sleep(delay_s)
    await hosted.kill()
    hosted.facts.clear()
    await hosted.start()
    await hosted.call("destroy_kernels", [s.kernel_id for s in specs], Reason.USER_REQUESTED)  # as the Manager does
    for spec in specs:
        fact = await hosted.until_status(spec, Status.TERMINATED)
        assert fact.reason == "user-requested"
    await hosted.call("acknowledge", [s.kernel_id for s in specs])


async def test_end_is_told_until_it_is_acknowledged(hosted: HostedAgent) -> None:
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.call("destroy_kernels", [spec.kernel_id], Reason.USER_REQUESTED)
    await hosted.until_status(spec, Status.TERMINATED)
    await hosted.kill()
    hosted.facts.clear()
    await hosted.start()
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert fact.reason == "user-requested"
    assert (await inspected(hosted, spec)).status is Status.TERMINATED
    await hosted.call("acknowledge", [spec.kernel_id])
    assert (await hosted.call("inspect")).kernels == ()


async def test_damaged_record_leaves_a_stray_that_can_be_ended(hosted: HostedAgent) -> None:
    spec, whole = kernel_spec(), kernel_spec()
    await hosted.begin(spec, whole)
    await hosted.kill()
    (hosted.settings.sessions_dir / spec.kernel_id / "kernel.json").write_text('{"agent_id": ')
    await hosted.start()
    fact = await inspected(hosted, spec)
    assert (fact.status, fact.session_id) == (Status.RUNNING, spec.session_id)
    assert await hosted.say(whole, "print(1)") == "1"
    await hosted.call("destroy_kernels", [spec.kernel_id], Reason.FORCED, forced=True)
    await hosted.until_status(spec, Status.TERMINATED)
    await hosted.end(whole)


async def test_lost_record_is_made_again_by_the_order(hosted: HostedAgent) -> None:
    """As the Manager gives it when the kernel is wanted: what runs is found, with all that it has in memory."""
    spec = kernel_spec()
    await hosted.begin(spec)
    await hosted.run(spec, "kept = 'kept'")
    await hosted.kill()
    (hosted.settings.sessions_dir / spec.kernel_id / "kernel.json").unlink()
    await hosted.start()
    assert not (await inspected(hosted, spec)).has_record
    hosted.facts.clear()
    await hosted.begin(spec)
    assert (await inspected(hosted, spec)).allocation == spec.allocation
    assert await hosted.say(spec, "print(kept)") == "kept"
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf')"
    assert await hosted.say(spec, ignore) == "deaf"  # to the polite order, as an entrypoint may be
    await hosted.end(spec)


async def test_reports_of_a_new_incarnation(hosted: HostedAgent) -> None:
    await hosted.until(lambda: hosted.reports and hosted.reports[-1][2])
    first = hosted.reports[-1][0]
    await hosted.kill()
    hosted.reports.clear()
    await hosted.start()
    await hosted.until(lambda: hosted.reports and hosted.reports[-1][2])
    assert [ready for _, _, ready in hosted.reports] == [False, True]
    assert hosted.reports[-1][0] != first
    assert await hosted.call("ping") == hosted.reports[-1][0]


async def test_supervisor_that_is_killed_takes_its_kernel_along(hosted: HostedAgent) -> None:
    if hosted.settings.agent.backend != "process":
        pytest.skip("only the process backend has supervisors")
    spec = kernel_spec()
    await hosted.begin(spec)
    (box,) = find_boxes(hosted.settings.sessions_dir)
    os.kill(box.read_pid()["pid"], signal.SIGKILL)
    fact = await hosted.until_status(spec, Status.TERMINATED)
    assert fact.reason == "container-lost"
    await hosted.call("acknowledge", [spec.kernel_id])

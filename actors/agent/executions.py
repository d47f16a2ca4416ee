"""Runs of code in kernels, as the front door asks for them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import assert_never

from actors.agent.kernel import KernelDriver
from actors.agent.links import KernelLink
from actors.contracts import ExecuteRequest
from backendai_ray.core.errors import InvalidParameter, KernelUnreachable, SessionEnded
from backendai_ray.core.execution import ExecMode, OutputType, RunOutput, RunStatus
from backendai_ray.core.ids import KernelId, parse_run_id

END_IS_FOUND_OUT_S = 5.0
"""How long a lost runner is waited for to be found dead, so that the caller hears why."""
MAX_REMEMBERED = 4096
_ENDS = (RunStatus.FINISHED, RunStatus.EXEC_TIMEOUT)


class Executions:
    """Remembers what was handed out of each run, for callers that do not acknowledge by number."""

    def __init__(self) -> None:
        self._handed_out: OrderedDict[tuple[KernelId, str], int] = OrderedDict()

    async def execute(self, driver: KernelDriver, request: ExecuteRequest) -> RunOutput:
        """Start, continue, feed or poll a run.

        Raises:
            RunNotFound: the run to continue is not known.
            SessionEnded: the kernel ended; the message says why.
        """
        run_id = parse_run_id(request.run_id)
        key = (driver.record.spec.kernel_id, run_id)
        link = await driver.ready_link()
        try:
            output = await self._ask(link, request, self._after(key, request))
        except KernelUnreachable as error:
            raise await why_unreachable(driver, error) from error
        self._handed_out[key] = output.seq
        self._handed_out.move_to_end(key)
        while len(self._handed_out) > MAX_REMEMBERED:
            self._handed_out.popitem(last=False)
        return _with_memory_note(driver, output) if output.status in _ENDS else output

    async def _ask(self, link: KernelLink, request: ExecuteRequest, after_seq: int) -> RunOutput:
        wait_s, max_bytes = request.wait_s, request.max_bytes
        match request.mode:
            case ExecMode.QUERY | ExecMode.BATCH:
                if request.after_seq:
                    return await link.poll(request.run_id, after_seq=after_seq, wait_s=wait_s, max_bytes=max_bytes)
                return await link.run(
                    request.run_id, request.mode, request.code, request.options, wait_s=wait_s, max_bytes=max_bytes
                )
            case ExecMode.INPUT:
                await link.send_input(request.run_id, request.code)
                return await link.poll(request.run_id, after_seq=after_seq, wait_s=wait_s, max_bytes=max_bytes)
            case ExecMode.CONTINUE:
                return await link.poll(request.run_id, after_seq=after_seq, wait_s=wait_s, max_bytes=max_bytes)
            case ExecMode.COMPLETE:
                raise InvalidParameter("mode: completion has a call of its own", field="mode")
        assert_never(request.mode)

    def _after(self, key: tuple[KernelId, str], request: ExecuteRequest) -> int:
        return self._handed_out.get(key, 0) if request.after_seq is None else request.after_seq


def _with_memory_note(driver: KernelDriver, output: RunOutput) -> RunOutput:
    killed = driver.new_oom_kills()
    if not killed:
        return output
    who = "a process of the session was" if killed == 1 else f"{killed} processes of the session were"
    note = f"\n[{who} killed for memory: the limit is {driver.memory_limit()}]\n"
    return replace(output, console=(*output.console, (OutputType.STDERR.value, note)))


async def why_unreachable(driver: KernelDriver, error: KernelUnreachable) -> KernelUnreachable | SessionEnded:
    """Return why a runner does not answer: the kernel's own end if that is what it is, else the error as it was."""
    try:
        if driver.link is None or not driver.link.alive:
            async with asyncio.timeout(END_IS_FOUND_OUT_S):
                await driver.ended.wait()
    except TimeoutError:
        return error
    if not driver.record.has_ended:
        return error
    return SessionEnded(f"the session has ended: {driver.record.message or driver.record.reason}")

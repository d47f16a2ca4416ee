"""Startup commands: run once per life, followed to their end whatever becomes of the agent meanwhile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from actors.agent.folders import life_folder
from actors.agent.journal import Startup
from actors.agent.workdir import read_untrusted
from backendai_ray.core.errors import BackendError
from backendai_ray.core.execution import RunStatus

if TYPE_CHECKING:
    from actors.agent.kernel import KernelDriver

log = structlog.get_logger()

RUN_ID = "startup"
_POLL_WAIT_S = 30.0
_RETRY_S = 0.5
_ENDS = (RunStatus.FINISHED, RunStatus.EXEC_TIMEOUT)


async def follow_startup(driver: KernelDriver) -> Startup | None:
    """Start the command if it was not, and wait for its end; returns ``None`` when the kernel ends first.

    Calling it again, also after a restart of the agent, never runs the command twice.
    """
    startup = driver.record.startup
    life = driver.record.life
    if startup is None or startup.exit_code is not None:
        return startup
    after_seq, is_started = 0, False
    while driver.record.life == life and not driver.record.has_ended:
        try:
            link = await driver.ready_link()
            if not is_started:
                await link.run_startup(startup.command, startup.timeout_s)
                is_started = True
            output = await link.poll(RUN_ID, after_seq=after_seq, wait_s=_POLL_WAIT_S)
            after_seq = output.seq
            if output.status in _ENDS:
                return _ended(startup, output.exit_code or 0, timed_out=output.status is RunStatus.EXEC_TIMEOUT)
        except BackendError as error:
            log.info("startup.lost_sight", kernel_id=life.kernel_id, error=error.message)
            await asyncio.sleep(_RETRY_S)
    return None


def _ended(startup: Startup, exit_code: int, *, timed_out: bool) -> Startup:
    return Startup(command=startup.command, timeout_s=startup.timeout_s, exit_code=exit_code, timed_out=timed_out)


def read_result(run_dir: Path, startup: Startup) -> Startup | None:
    """Return what the runner wrote down of the command's end; ``None`` when it has not ended (or not legibly)."""
    try:
        said: dict[str, Any] = json.loads(read_untrusted(run_dir / "result.json", 4096))
        return _ended(startup, int(said["exit_code"]), timed_out=said.get("status") == "exec-timeout")
    except (ValueError, KeyError, TypeError):
        return None


def take_result(driver: KernelDriver, sessions_dir: Path) -> None:
    """Note the end of a command whose kernel ended before we heard of it. Blocks on the disk."""
    startup = driver.record.startup
    if startup is not None and startup.exit_code is None:
        result = read_result(life_folder(sessions_dir, driver.record.life) / "run", startup)
        if result is not None:
            driver.change(startup=result)

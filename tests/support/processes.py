"""Servers that a test run starts for itself."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until


def free_port() -> int:
    """Returns a loopback TCP port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_server(
    command: Sequence[str | Path],
    *,
    is_ready: Callable[[], bool],
    log: Path,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground while the block runs.

    Args:
        command: The server, told not to become a daemon.
        is_ready: Whether it answers.
        log: Where its output goes; shown when it does not come up.
        user: Whom to run it as (root only).
        stop_signal: What ends it in good order.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            # The kernel ends the server with us, even when we are killed and no fixture is torn down.
            ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or is_ready(),
            timeout_s=60,
            interval_s=0.05,
            story=lambda: log.read_text(errors="replace")[-2000:],
        )
        if process.returncode is not None:
            raise AssertionError(f"{command[0]} ended at once: {log.read_text(errors='replace')[-2000:]}")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop_signal)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

"""Programs that print, fork, eat or die without measure, and the session that has to live with them."""

from __future__ import annotations

import time

import pytest

from backendai_ray.client import Client
from backendai_ray.core.errors import BackendError
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.blackbox, pytest.mark.timeout(180)]


def test_a_program_that_prints_without_end_is_cut_and_can_be_interrupted(live_client: Client) -> None:
    """Nobody reads for a while: what came meanwhile is cut with a clear marker, and the run goes on."""
    session = live_client.sessions.create("python", cpu=1, mem="512m")
    text = ""
    stream = session.stream("while True: print('x' * 1000)")
    for chunk in stream:
        text += chunk.data if chunk.type == "stdout" else ""
        if len(text) > 1_000_000:
            break
    time.sleep(8)  # nobody reads: this is what the test is about
    for chunk in stream:
        if chunk.type in ("stdout", "stderr", "log"):
            text = text[-200:] + str(chunk.data)
        if "output were cut" in text:
            break
    session.interrupt()
    for _ in stream:
        pass
    assert session.run("print('alive')").stdout.strip() == "alive"
    session.destroy(forced=True)


def test_a_program_that_forks_without_end_stays_in_its_box(live_client: Client) -> None:
    """The limit of processes stops it; the session or its end, not the machine, is what it hurts."""
    session = live_client.sessions.create("python", cpu=1, mem="4g")
    code = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(120)
            os._exit(0)
        made += 1
except OSError as error:
    print("stopped after", made > 10, type(error).__name__)
"""
    result = session.run(code, timeout=60)
    assert "stopped after True" in result.stdout
    session.destroy(forced=True)
    assert session.wait("TERMINATED", timeout=60).status == "TERMINATED"


def test_a_program_that_eats_all_memory_is_said_to_be_killed_for_memory(live_client: Client) -> None:
    session = live_client.sessions.create("python", cpu=1, mem="128m")
    told = ""
    try:
        result = session.run("hog = []\nwhile True: hog.append(bytearray(1 << 22))", timeout=60)
        told = result.stdout + result.stderr
    except BackendError as error:  # the runner itself may be what was killed
        told = str(error)
    ended = wait_until(lambda: session.info(), timeout_s=5)
    if ended.status in ("TERMINATING", "TERMINATED"):
        ended = session.wait("TERMINATED", timeout=60)
        told += str(ended)
    assert "memory" in told.lower()
    if ended.status == "RUNNING":
        session.destroy(forced=True)


def test_a_program_that_exits_the_interpreter_ends_the_session_with_its_code(live_client: Client) -> None:
    session = live_client.sessions.create("python", cpu=1, mem="128m")
    with pytest.raises(BackendError):
        session.run("import os; os._exit(3)", timeout=60)
    ended = session.wait("TERMINATED", timeout=60)
    assert ended.status == "TERMINATED"

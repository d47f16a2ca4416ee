"""Fixtures for all tests. Where each lives:

tests/support/engine.py       docker_engine, default_image, no_python_image, exits_at_once_image,
                              r_image
tests/support/services.py     redis_url, valkey_url, postgres_url (and the session-wide servers behind them)
tests/support/ray_cluster.py  ray_cluster, ray_address, clean_environment
tests/support/waiting.py      wait_until, wait_until_async: to be called, not fixtures

After the last test nothing that this run started may be left: see ``pytest_sessionfinish``.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from tests.support.leaks import containers_and_networks, mark_this_run, processes_of_this_run
from tests.support.requirements import SKIP_PREFIX
from tests.support.waiting import wait_until

# In the order in which they import each other: pytest rewrites the assertions of a module only before its first import.
pytest_plugins = ["tests.support.ray_cluster", "tests.support.services", "tests.support.engine", "tests.support.live"]

_LEFTOVERS = pytest.StashKey[list[str]]()
_ENGINE_BEFORE = pytest.StashKey[dict[str, str]]()


LIVE = "live-cluster"
"""The group of all tests that use the run's clusters: these are started once, in one process."""


def pytest_configure(config: pytest.Config) -> None:
    if _is_worker(config):
        return  # what we start carries the mark of the process that waits for us, and that looks for what is left
    mark_this_run()
    config.stash[_LEFTOVERS] = []
    config.stash[_ENGINE_BEFORE] = containers_and_networks() if _engine_is_ours() else {}


def _is_worker(config: pytest.Config) -> bool:
    """Whether other processes run a part of the same tests, and one that waits for us all."""
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where several processes share the work, what shares fixtures: a file, or the live clusters."""
    for item in items:
        is_live = {"clusters", "live_endpoint"} & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group(LIVE if is_live else str(item.path)))


def _engine_is_ours() -> bool:
    """Only in CI is everything new in the engine our doing; elsewhere other people work beside us."""
    return os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process, container or network that it started outlives it."""
    if _is_worker(session.config):
        return
    leftovers = session.config.stash[_LEFTOVERS]
    try:
        wait_until(lambda: not processes_of_this_run(), timeout_s=5)
    except AssertionError:
        for pid, command in processes_of_this_run().items():
            leftovers.append(f"process {pid}: {command[:150]}")
            os.kill(pid, signal.SIGKILL)
    if _engine_is_ours():
        before = session.config.stash[_ENGINE_BEFORE]
        leftovers.extend(text for key, text in containers_and_networks().items() if key not in before)
    if leftovers and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what could not run on this machine and what was left over, before pytest's own last line."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(SKIP_PREFIX):
            reasons[reason.removeprefix(SKIP_PREFIX)] += 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests could not run because {reason}", yellow=True)
    for leftover in config.stash.get(_LEFTOVERS, []):
        terminalreporter.write_line(f"left behind by this test run: {leftover}", red=True)

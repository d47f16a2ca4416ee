"""The embedded Valkey: comes up, comes back, and never stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backendai_ray.bus import Bus, EmbeddedBus
from backendai_ray.core.errors import BusUnavailable
from tests.support.waiting import wait_until, wait_until_async


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedBus]:
    server = EmbeddedBus(tmp_path / "bus")
    await server.start()
    yield server
    await server.stop()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _assert_private(server: EmbeddedBus) -> None:
    socket = _socket(server)
    assert socket.stat().st_mode & 0o777 == 0o700
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    process = Path(f"/proc/{server.pid}")
    inodes = {os.readlink(fd) for fd in (process / "fd").iterdir() if fd.is_symlink()}
    tcp = (process / "net/tcp").read_text() + (process / "net/tcp6").read_text()
    assert not [line for line in tcp.splitlines() if f"socket:[{line.split()[9]}]" in inodes]


def _socket(server: EmbeddedBus) -> Path:
    return Path(server.url.removeprefix("unix://"))


async def test_it_answers_on_a_private_socket_only(embedded: EmbeddedBus) -> None:
    async with Bus(embedded.url) as bus:
        await bus.ping()
        config = await bus.client.config_get("*")
    assert (config["port"], config["save"], config["appendonly"]) == ("0", "", "no")
    assert (config["maxmemory-policy"], int(config["maxmemory"])) == ("noeviction", 256 * 2**20)
    _assert_private(embedded)


async def test_stop_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedBus(tmp_path / "bus")
    await server.start()
    pid = server.pid
    assert pid is not None
    await server.stop()
    await server.stop()
    assert not _is_running(pid)
    assert {path.name for path in (tmp_path / "bus").iterdir()} == {"bus.log"}
    async with Bus(server.url) as bus:
        with pytest.raises(BusUnavailable):
            await bus.ping()


async def test_a_running_server_is_taken_over(tmp_path: Path, embedded: EmbeddedBus) -> None:
    async with Bus(embedded.url) as bus:
        await bus.client.set("still", "there")
        other = EmbeddedBus(tmp_path / "bus")
        await other.start()
        assert other.pid == embedded.pid
        assert await bus.client.get("still") == "there"
    assert other.pid is not None
    await other.stop()
    assert not _is_running(other.pid or embedded.pid or 0)


@pytest.mark.kill
async def test_a_killed_server_comes_back(embedded: EmbeddedBus) -> None:
    supervision = asyncio.create_task(embedded.supervise())
    async with Bus(embedded.url) as bus:
        for _ in range(2):
            before = embedded.pid
            assert before is not None
            os.kill(before, signal.SIGKILL)

            async def answers(old: int = before) -> bool:
                try:
                    await bus.ping()
                except BusUnavailable:
                    return False
                return embedded.pid not in (None, old)

            await wait_until_async(answers)
    supervision.cancel()
    await asyncio.gather(supervision, return_exceptions=True)


@pytest.mark.kill
async def test_a_frozen_server_is_replaced(tmp_path: Path, embedded: EmbeddedBus) -> None:
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGSTOP)
    other = EmbeddedBus(tmp_path / "bus")
    await other.start()
    assert other.pid != embedded.pid
    async with Bus(other.url) as bus:
        await bus.ping()
    await other.stop()


@pytest.mark.kill
def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from backendai_ray.bus import EmbeddedBus\n"
        "async def main():\n"
        "    server = EmbeddedBus(pathlib.Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print('pid', server.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, tmp_path / "bus"], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        pid = next(int(line.split()[1]) for line in starter.stdout if line.startswith("pid "))
        assert _is_running(pid)
    finally:
        starter.kill()
        starter.wait(10)
        if starter.stdout:
            starter.stdout.close()
    wait_until(lambda: not _is_running(pid))


async def test_a_long_path(tmp_path: Path) -> None:
    server = EmbeddedBus(tmp_path / ("long" * 30) / "bus")
    await server.start()
    socket = _socket(server)
    try:
        async with Bus(server.url) as bus:
            await bus.ping()
    finally:
        await server.stop()
        socket.parent.rmdir()


@pytest.fixture
def blocked_folder(tmp_path: Path) -> Path:
    """A folder in which something else is where the socket should be."""
    _socket(EmbeddedBus(tmp_path / "bus")).mkdir(parents=True)
    return tmp_path / "bus"


async def test_a_start_that_cannot_work(blocked_folder: Path) -> None:
    server = EmbeddedBus(blocked_folder)
    with pytest.raises(BusUnavailable, match="does not start"):
        await server.start()
    assert server.pid is None

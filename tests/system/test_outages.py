"""Services away while sessions come and go: the event bus frozen, the store on PostgreSQL, a disk that is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backendai_ray.config import MIB, load_settings
from backendai_ray.core.errors import BackendError
from backendai_ray.local_cluster import LocalCluster
from tests.support.live import client_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.blackbox, pytest.mark.timeout(180)]

AGENT = {"backend": "process", "node_id": "outages", "reserved_mem": "0"}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: Unix sockets live below it."""
    return tmp_path_factory.mktemp("o")


def test_sessions_go_on_while_the_bus_is_frozen_and_its_events_arrive_later(folder: Path) -> None:
    settings = load_settings(data_dir=folder, api={"port": 0}, agent=AGENT)
    with LocalCluster.start(settings) as cluster, client_of(cluster) as client:
        seen: list[tuple[str, str]] = []
        listener = threading.Thread(target=_listen, args=(cluster, seen), daemon=True)
        listener.start()
        first = client.sessions.create("python", cpu=1, mem="64m")
        wait_until(lambda: (first.id, "session_started") in seen, timeout_s=30, story=lambda: str(seen))

        bus = int((folder / "run" / "bus.pid").read_text())
        os.kill(bus, signal.SIGSTOP)
        try:
            second = client.sessions.create("python", cpu=1, mem="64m")
            assert second.run("print('without a bus')").stdout.strip() == "without a bus"
            second.destroy()
            second.wait("TERMINATED", timeout=30)
            first.destroy()
            first.wait("TERMINATED", timeout=30)
        finally:
            os.kill(bus, signal.SIGCONT)
        names = wait_until(
            lambda: (
                [name for one, name in seen if one == second.id]
                if (first.id, "session_terminated") in seen and (second.id, "session_terminated") in seen
                else []
            ),
            timeout_s=60,
            story=lambda: str(seen),
        )
        session_events = [name for name in names if name.startswith("session_")]
        assert session_events[0] == "session_enqueued"
        assert session_events[-1] == "session_terminated"


def _listen(cluster: LocalCluster, seen: list[tuple[str, str]]) -> None:
    with client_of(cluster) as client:
        try:
            for event in client.events():
                seen.append((str(event.data.get("sessionId", "")), event.name))  # noqa: PERF401 - as they come
        except BackendError:
            return  # the cluster has ended


@pytest.mark.postgres
def test_the_whole_way_on_postgresql_and_redis(folder: Path, postgres_url: str, redis_url: str) -> None:
    settings = load_settings(
        data_dir=folder, api={"port": 0}, agent=AGENT, store={"url": postgres_url}, bus={"url": redis_url}
    )
    with LocalCluster.start(settings) as cluster, client_of(cluster) as client:
        session = client.sessions.create("python", cpu=1, mem="64m")
        assert session.run("print(6 * 7)").stdout.strip() == "42"
        session.destroy()
        assert session.wait("TERMINATED", timeout=30).status == "TERMINATED"
    assert not (folder / "store.db").exists()
    with LocalCluster.start(settings) as cluster, client_of(cluster) as client:
        assert client.sessions.get(session.id).info().status == "TERMINATED"


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 640 MB, so that it can be filled in no time."""
    if os.geteuid() != 0:
        pytest.skip("could not run here: mounting needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_and_passes(small_disk: Path, tmp_path: Path) -> None:
    """An upload that does not fit leaves nothing, new sessions wait and say why, and all goes on when there is room."""
    settings = load_settings(data_dir=small_disk, api={"port": 0}, agent=AGENT)
    big = tmp_path / "big.bin"
    big.write_bytes(b"x" * (32 * MIB))
    with LocalCluster.start(settings) as cluster, client_of(cluster) as client:
        session = client.sessions.create("python", cpu=1, mem="64m")
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 8 * MIB)
        with pytest.raises(BackendError, match=r"space|full|disk"):
            session.upload(str(big))
        assert [entry.name for entry in session.ls(".") if "big" in entry.name] == []
        wait_until(lambda: "nearly full" in client.agents()[0].message, timeout_s=30)
        waiting = client.sessions.create("python", cpu=1, mem="64m", wait=False)
        assert "nearly full" in str(waiting.explain())
        filler.unlink()
        waiting.wait("RUNNING", timeout=60)
        assert waiting.run("print('room again')").stdout.strip() == "room again"

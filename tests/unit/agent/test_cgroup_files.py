"""What control groups say, as texts of files from machines with version 1 and 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.agent.backends.docker.usage import engine_usage
from actors.agent.measuring import cgroup_files as texts
from actors.agent.measuring.reading import NodeFigures, UsageFiles, files_of_process, read_node, read_usage

CPU_STAT = "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 0\n"
MEMORY_STAT_V2 = "anon 1000\nfile 5000\ninactive_anon 1\ninactive_file 3000\nactive_file 2000\n"
MEMORY_STAT_V1 = "cache 5000\ninactive_file 1\nhierarchical_memory_limit 9\ntotal_inactive_file 2000\n"
IO_STAT = (
    "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:0 rbytes=1 wbytes=2 rios=1 wios=1\n"
    "7:0 cost.usage=3\n"
)
BLKIO = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:16 Read 1\n8:0 Total 12288\nTotal 12288\n"
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    2000      10    0    0    0     0          0         0     3000      12    0    0    0     0       0          0
eth1:5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
"""  # noqa: E501 - as the kernel writes it
STAT = "cpu  100 20 30 4000 50 6 4 0 0 0\ncpu0 50 10 15 2000 25 3 2 0 0 0\nbtime 1\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages_Total: 0\n"


def test_version_2() -> None:
    assert texts.cpu_ns_v2(CPU_STAT) == 2_500_000_000
    assert texts.memory_in_use(10_000, MEMORY_STAT_V2, version=2) == 7000
    assert texts.io_v2(IO_STAT) == (4097, 8194)
    assert texts.io_v2("") == (0, 0), "it has not used a disk yet"


def test_version_1() -> None:
    assert texts.number("123456789\n") == 123_456_789
    assert texts.memory_in_use(10_000, MEMORY_STAT_V1, version=1) == 8000
    assert texts.io_v1(BLKIO) == (4097, 8192)


def test_network_and_node() -> None:
    assert texts.network(NET_DEV) == (2005, 3007)
    assert texts.busy_ns(STAT, 100) == 1_600_000_000
    assert texts.memory_of_node(MEMINFO) == (400 * 1024, 1000 * 1024)


@pytest.mark.parametrize("text", ["", "max", "-1", "nonsense here", "usage_usec", "\x00"])
def test_what_is_not_said_is_not_known(text: str) -> None:
    assert texts.number(text) is None
    assert texts.cpu_ns_v2(text) is None
    assert texts.network(text) is None
    assert texts.busy_ns(text, 100) is None
    assert texts.memory_of_node(text) is None
    assert texts.memory_in_use(5, text, version=2) == 5
    assert texts.memory_in_use(None, text, version=2) is None
    assert texts.io_v2("8:0 rbytes=x") is None
    assert texts.io_v1("8:0 Read x") is None


def test_where_the_groups_of_a_process_are() -> None:
    assert list(texts.groups_of_process("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/x\nnonsense\n")) == [
        ("memory", "/docker/abc"),
        ("cpu", "/docker/abc"),
        ("cpuacct", "/docker/abc"),
        ("", "/x"),
    ]
    mounts = (
        "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nshort line\n"
    )
    found = texts.mounted_hierarchies(mounts)
    assert (found["cpuacct"], found[""]) == ("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_container_of_version_2(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cg"
    write(
        tmp_path,
        {
            "proc/self/mounts": f"cgroup2 {groups} cgroup2 rw 0 0\n",
            "proc/42/cgroup": "0::/system.slice/docker-abc.scope\n",
            "proc/42/net/dev": NET_DEV,
            "cg/system.slice/docker-abc.scope/cpu.stat": CPU_STAT,
            "cg/system.slice/docker-abc.scope/memory.current": "10000\n",
            "cg/system.slice/docker-abc.scope/memory.stat": MEMORY_STAT_V2,
            "cg/system.slice/docker-abc.scope/io.stat": IO_STAT,
            "cg/system.slice/docker-abc.scope/pids.current": "3\n",
        },
    )
    files = files_of_process(42, proc=proc)
    assert files is not None
    assert read_usage(files, proc=proc) == {
        "cpu_ns": 2_500_000_000, "memory_bytes": 7000, "io_read_bytes": 4097, "io_write_bytes": 8194,
        "net_rx_bytes": 2005, "net_tx_bytes": 3007, "pids": 3,
    }  # fmt: skip


def test_a_container_of_version_1(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    mounts = "".join(
        f"cgroup {tmp_path}/cg/{name} cgroup rw,{name} 0 0\n" for name in ("memory", "cpuacct", "blkio", "pids")
    )
    write(
        tmp_path,
        {
            "proc/self/mounts": mounts,
            "proc/42/cgroup": "4:memory:/docker/abc\n3:cpuacct:/docker/abc\n2:blkio:/docker/abc\n1:pids:/docker/abc\n",
            "cg/memory/docker/abc/memory.usage_in_bytes": "10000",
            "cg/memory/docker/abc/memory.stat": MEMORY_STAT_V1,
            "cg/cpuacct/docker/abc/cpuacct.usage": "77",
            "cg/blkio/docker/abc/blkio.throttle.io_service_bytes": BLKIO,
            "cg/pids/docker/abc/pids.current": "5",
        },
    )
    files = files_of_process(42, proc=proc)
    assert files is not None
    assert read_usage(files, proc=proc) == {
        "cpu_ns": 77, "memory_bytes": 8000, "io_read_bytes": 4097, "io_write_bytes": 8192, "pids": 5,
    }  # fmt: skip


def test_a_container_that_is_not_seen_from_here(tmp_path: Path) -> None:
    write(tmp_path, {"self/mounts": "cgroup2 /x cgroup2 rw 0 0\n", "42/cgroup": "0::/\n", "43/cgroup": "0::/../a\n"})
    assert files_of_process(42, proc=tmp_path) is None
    assert files_of_process(43, proc=tmp_path) is None
    assert files_of_process(44, proc=tmp_path) is None
    assert read_usage(UsageFiles({"memory": (str(tmp_path / "gone"), 2)}, 44), proc=tmp_path) == {}


def test_this_node(tmp_path: Path) -> None:
    write(tmp_path, {"stat": STAT, "meminfo": MEMINFO, "1/net/dev": NET_DEV})
    figures = read_node(tmp_path, proc=tmp_path)
    assert (figures.memory_bytes, figures.net_rx_bytes) == (400 * 1024, 2005)
    assert figures.cpu_ns == 160 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert figures.disk_total
    assert figures.disk_total >= (figures.disk_bytes or 0) > 0
    assert read_node(tmp_path / "nothing", proc=tmp_path / "nothing") == NodeFigures()
    assert read_node(tmp_path).memory_total, "this machine says it"


def test_an_engine_elsewhere_is_asked() -> None:
    said = {
        "memory_stats": {"usage": 10_000, "stats": {"inactive_file": 3000}},
        "cpu_stats": {"cpu_usage": {"total_usage": 5}},
        "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 10, "tx_bytes": 20}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "write", "value": 8}]},
        "pids_stats": {"current": 4},
    }
    assert engine_usage(said) == {
        "cpu_ns": 5, "memory_bytes": 7000, "net_rx_bytes": 11, "net_tx_bytes": 22, "io_read_bytes": 7,
        "io_write_bytes": 8, "pids": 4,
    }  # fmt: skip
    assert engine_usage({"memory_stats": {}}) == {}

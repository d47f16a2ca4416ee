"""What control groups and ``/proc`` say of usage: the texts of their files, read. Pure; nothing here opens a file.

What a text does not say is ``None``, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator


def number(text: str) -> int | None:
    """Return the number that a file holds (``memory.current``, ``cpuacct.usage``, ``pids.current``)."""
    word = text.strip()
    return int(word) if word.isdecimal() else None


def value_of(text: str, name: str) -> int | None:
    """Return the value of a name in a file of ``NAME VALUE`` lines (``cpu.stat``, ``memory.stat``)."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return number(value)
    return None


def cpu_ns_v2(cpu_stat: str) -> int | None:
    """Return CPU time from ``cpu.stat`` of version 2."""
    used = value_of(cpu_stat, "usage_usec")
    return None if used is None else used * 1000


def memory_in_use(usage: int | None, memory_stat: str, *, version: int) -> int | None:
    """Return memory without inactive file pages, which the system gives back when somebody needs them.

    Args:
        usage: ``memory.current``, or ``memory.usage_in_bytes`` in version 1.
        memory_stat: ``memory.stat``.
        version: Of control groups.
    """
    if usage is None:
        return None
    name = "inactive_file" if version == 2 else "total_inactive_file"
    return max(0, usage - (value_of(memory_stat, name) or 0))


def io_v2(io_stat: str) -> tuple[int, int] | None:
    """Return bytes read and written from ``io.stat`` of version 2, over all disks; ``None`` of an unreadable one."""
    read = written = 0
    for line in io_stat.splitlines():
        pairs = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
        try:
            read += int(pairs.get("rbytes", 0))
            written += int(pairs.get("wbytes", 0))
        except ValueError:
            return None
    return read, written


def io_v1(service_bytes: str) -> tuple[int, int] | None:
    """Return bytes read and written from ``blkio.throttle.io_service_bytes`` of version 1."""
    sums = {"Read": 0, "Write": 0}
    for line in service_bytes.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in sums:
            if not words[2].isdecimal():
                return None
            sums[words[1]] += int(words[2])
    return sums["Read"], sums["Write"]


def network(net_dev: str) -> tuple[int, int] | None:
    """Return bytes received and sent from ``/proc/PID/net/dev``, over all interfaces but the loopback one."""
    found = False
    received = sent = 0
    for line in net_dev.splitlines():
        name, colon, rest = line.partition(":")
        columns = rest.split()
        if colon and name.strip() != "lo" and len(columns) >= 9 and columns[0].isdecimal() and columns[8].isdecimal():
            found = True
            received += int(columns[0])
            sent += int(columns[8])
    return (received, sent) if found else None


def groups_of_process(cgroup: str) -> Iterator[tuple[str, str]]:
    """Yield ``(controller, path)`` from ``/proc/PID/cgroup``; version 2 has the empty controller."""
    for line in cgroup.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                yield controller, parts[2]


def mounted_hierarchies(mounts: str) -> dict[str, str]:
    """Return where each controller of version 1 is mounted, by ``/proc/mounts``; version 2 has the empty name."""
    found: dict[str, str] = {}
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        if words[2] == "cgroup2":
            found.setdefault("", words[1])
        elif words[2] == "cgroup":
            for option in words[3].split(","):
                found.setdefault(option, words[1])
    return found


def busy_ns(stat: str, ticks_per_s: int) -> int | None:
    """Return the time that all cores together were in use, from ``/proc/stat``; waiting for disks is not use."""
    words = stat.partition("\n")[0].split()
    if len(words) < 6 or words[0] != "cpu" or not all(word.isdecimal() for word in words[1:]):
        return None
    ticks = [int(word) for word in words[1:]]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted among the users already
    used = sum(ticks[:3]) + sum(ticks[5:7])
    return used * 1_000_000_000 // ticks_per_s


def memory_of_node(meminfo: str) -> tuple[int, int] | None:
    """Return memory in use and in all, from ``/proc/meminfo``."""
    sizes: dict[str, int] = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            sizes[name] = int(words[0]) * 1024
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return sizes["MemTotal"] - sizes["MemAvailable"], sizes["MemTotal"]

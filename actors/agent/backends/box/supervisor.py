"""Keeps one kernel of the process backend: starts it, limits it, keeps its log, and tells how it ended.

Run as ``python -I -S supervisor.py CONFIG``. It leaves its parent's session and process tree, so that the end of the
agent (or of Ray) does not end the kernel; whatever happens to the agent, it cleans up and writes down the end.

Beside CONFIG it writes ``pid.json`` once the kernel's process is started and ``exit.json`` once nothing of it is
left. It holds a lock on ``lock`` all its life: a second supervisor of the same life finds it held and steps back.
SIGTERM asks the kernel to end, SIGUSR1 kills it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../../../..")))

from actors.agent.backends.box.cgroups import Group
from actors.agent.backends.box.processes import descendants, start_time

PR_SET_CHILD_SUBREAPER = 36
READ_SIZE = 65536


def main(config_path: str) -> int:
    """Become two: the caller's child reports whether the kernel was started, the supervisor goes on by itself."""
    folder = os.path.dirname(os.path.abspath(config_path))
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _wait_for_other(folder)
    if os.path.exists(f"{folder}/exit.json") or os.path.exists(f"{folder}/pid.json"):
        return 0  # this life has been lived
    told, tell = os.pipe()
    if os.fork() == 0:
        os.close(told)
        os.setsid()
        supervise(config, folder, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        answer = pipe.read().decode()
    if answer == "started":
        return 0
    sys.stderr.write(answer or "the supervisor ended before it started the kernel")
    return 1


def _wait_for_other(folder: str) -> int:
    """Another supervisor has this life: it is started once that one says so."""
    for _ in range(1000):
        if os.path.exists(f"{folder}/pid.json") or os.path.exists(f"{folder}/exit.json"):
            return 0
        time.sleep(0.01)
    sys.stderr.write("another supervisor of this kernel does not get on")
    return 1


def supervise(config: dict[str, Any], folder: str, tell: int) -> NoReturn:
    """Start the kernel and stay until nothing of it is left."""
    group = None
    try:
        _become_daemon()
        group = Group.create(config["name"], config["limits"])
        watcher = _Watcher(config, folder, group)
        try:
            watcher.start()
        except OSError as error:
            group.remove()
            os.write(tell, str(error).encode())
            os._exit(1)
        os.write(tell, b"started")
        os.close(tell)
        watcher.run()
    except BaseException as error:  # noqa: BLE001 - nobody else could tell how it ended
        if group is not None:
            group.kill()
            group.remove()
        _write_json(f"{folder}/exit.json", {"message": f"the supervisor failed: {error!r}", "ended_at": time.time()})
        os._exit(1)
    os._exit(0)


def _become_daemon() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.chdir("/")
    # Ray blocks SIGINT in its workers, and a child inherits that: programs in the kernel must get their Ctrl-C.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for setting, value in (("nice", 0), ("oom", 0)):
        # Ray lowers its workers' priority and offers them to the OOM killer first; a kernel is neither.
        try:
            if setting == "nice":
                os.setpriority(os.PRIO_PROCESS, 0, value)
            else:
                with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                    file.write(str(value))
        except OSError:
            pass  # only root may raise either


class _Watcher:
    def __init__(self, config: dict[str, Any], folder: str, group: Group) -> None:
        self._config = config
        self._folder = folder
        self._group = group
        self._log = _RotatingLog(config["log_path"], config["log_bytes"])
        self._main = 0
        self._status: int | None = None
        self._must_kill = False
        self._was_told = False
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def start(self) -> None:
        """Raises OSError: the kernel's program cannot be run."""
        self._output, write_end = os.pipe()
        failed, fail = os.pipe()
        self._main = os.fork()
        if self._main == 0:
            _run_kernel(self._config, self._group, write_end, fail)
        os.close(write_end)
        os.close(fail)
        with os.fdopen(failed, "rb") as pipe:
            why = pipe.read().decode()
        if why:
            os.waitpid(self._main, 0)
            raise OSError(why)
        os.set_blocking(self._output, False)
        pid = os.getpid()
        facts = {"pid": pid, "start_time": start_time(pid), "main": self._main, "started_at": time.time()}
        _write_json(f"{self._folder}/pid.json", facts | {"cgroups": self._group.paths})

    def run(self) -> None:
        """Keep the log until the kernel's main process has ended, then end the rest and say how it was."""
        killed_at = 0.0
        while self._status is None:
            ready, _, _ = select.select([self._output, self._wake_read], [], [], 1.0 if self._must_kill else None)
            if self._wake_read in ready:
                _drain(self._wake_read)
            if self._output in ready and not self._copy_output():
                self._output = self._wake_read  # closed by all of them; only signals matter now
            self._reap()
            if self._must_kill and self._status is None and time.monotonic() - killed_at > 0.5:
                killed_at = time.monotonic()
                self._kill_all()
        self._finish()

    def _on_signal(self, number: int, _frame: object) -> None:
        self._was_told = self._was_told or number != signal.SIGCHLD
        if number == signal.SIGTERM:
            self._ask_to_end()
        elif number == signal.SIGUSR1:
            self._must_kill = True

    def _ask_to_end(self) -> None:
        skipped = self._wrappers()
        for pid in descendants(os.getpid()):
            if pid not in skipped:
                _kill(pid, signal.SIGTERM)

    def _wrappers(self) -> set[int]:
        """The sandbox's own processes: ending them politely would kill what is inside at once."""
        return {self._main, *descendants(self._main)[:1]} if self._config["is_sandboxed"] else set()

    def _copy_output(self) -> bool:
        """Returns whether there may be more."""
        try:
            data = os.read(self._output, READ_SIZE)
        except BlockingIOError:
            return True
        self._log.write(data)
        return bool(data)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main:
                self._status = status

    def _kill_all(self) -> None:
        for pid in reversed(descendants(os.getpid())):
            _kill(pid, signal.SIGKILL)
        self._group.kill(timeout_s=0.4)

    def _finish(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self._kill_all()
            self._reap()
            if not descendants(os.getpid()) and not self._group.processes():
                break
            time.sleep(0.005)
        if self._output != self._wake_read:
            for _ in range(64):
                if not select.select([self._output], [], [], 0)[0] or not self._copy_output():
                    break
        oom_kills = self._group.oom_kills()
        self._group.remove()
        code = os.waitstatus_to_exitcode(self._status or 0)
        facts = {
            # The sandbox passes a signal on as 128 + number, as a shell does; so do we where there is none.
            "exit_code": 128 - code if code < 0 else code,
            "oom_kills": oom_kills,
            "was_told": self._was_told,
            "ended_at": time.time(),
        }
        _write_json(f"{self._folder}/exit.json", facts)


def _run_kernel(config: dict[str, Any], group: Group, output: int, fail: int) -> NoReturn:
    """In the child: put the limits on and become the kernel."""
    try:
        os.setsid()
        group.enter()
        limits = config["limits"]
        if limits.get("cores"):
            os.sched_setaffinity(0, set(limits["cores"]))
        for name, wanted in config["rlimits"].items():
            number = getattr(resource, name)
            most = resource.getrlimit(number)[1]
            soft, hard = (most if most != resource.RLIM_INFINITY and (v == -1 or v > most) else v for v in wanted)
            resource.setrlimit(number, (soft, hard))
        for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, stream)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(config["cwd"])
        os.execve(config["argv"][0], config["argv"], config["environ"])
    except BaseException as error:  # noqa: BLE001 - a forked child must never go on as its parent
        os.write(fail, f"{config['argv'][0]}: {error}".encode())
    os._exit(127)


class _RotatingLog:
    """The end of what was printed, in two files of at most half the size each."""

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._half = max(4096, limit // 2)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        try:
            if self._size + len(data) > self._half:
                os.close(self._file)
                os.replace(self._path, self._path + ".1")
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._size = 0
            self._size += os.write(self._file, data)
        except OSError:
            pass  # a full disk costs log lines, not the kernel


def _drain(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        pass


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it ended meanwhile


def _write_json(path: str, facts: dict[str, Any]) -> None:
    """Write whole or not at all; a full disk is waited out for a while, since nobody else can tell these facts."""
    for _ in range(600):
        try:
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                json.dump(facts, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(path + ".tmp", path)
            return
        except FileNotFoundError:
            return  # the kernel's folder was deleted: nobody wants to know
        except OSError:
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

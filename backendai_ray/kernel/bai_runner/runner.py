"""The runner: the main thread executes runs one after another, the service thread serves the agent."""

from __future__ import annotations

import os
import sys
from _queue import Empty, SimpleQueue
from _signal import SIG_DFL, SIG_SETMASK, SIGINT, SIGTERM, pthread_kill, pthread_sigmask  # type: ignore[import-not-found]
from _signal import signal as set_signal_handler
from _thread import allocate_lock, get_ident, start_new_thread
from time import monotonic, time

from .output import Sink
from .records import STDERR, STDOUT, STEP
from .requests import Requests
from .runs import RunTable
from .streams import InputStream, OutputStream

SHUTDOWN_GRACE_S = 3.0
MUST_STOP_CHECK_S = 0.05
FINISHED, EXEC_TIMEOUT = "finished", "exec-timeout"

MYPY = False
if MYPY:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from .runs import Run
    from .server import Server


class Runner:
    """Owns the sink, the runs and the two threads. Built in the main thread, which then calls :meth:`run`."""

    def __init__(self, server: Server, token: bytes, options: dict[str, str]) -> None:
        self.pid = os.getpid()
        self.started_at = time()
        self.server = server
        self.workdir = options["workdir"]
        self.run_dir = options["run-dir"]
        self.runtime_name = options["runtime"]
        self.is_spare = options["spare"] == "yes"
        """Started ahead, for a session that is not known yet; :meth:`adopt` ends that."""
        self.sink = Sink(server.wake)
        self.sink.guard = 1
        self.table = RunTable(int(options["buffer-bytes"]))
        self.jobs: Any = SimpleQueue()
        self.inputs: Any = SimpleQueue()
        self.modes: dict[str, Callable[[Run], int]] = {
            "query": self._execute_query,
            "batch": self._execute_batch,
            "startup": self._execute_startup,
        }
        self._requests = Requests(self, token)
        self._main_ident = get_ident()
        self._log_fd = os.dup(2)
        self._runtime: Any = None
        self.sessions: set[int] = set()
        """Sessions of children that live now; the runner's end is theirs."""
        self._stopping = False
        self._prepared = allocate_lock()
        self._prepared.acquire()
        server.timers.append(self._check_deadline)

    def run(self) -> None:
        """Serve and execute until shut down."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for pipe in self.sink.capture():
            self.server.watch(pipe.read_end, lambda pipe=pipe: self._read_pipe(pipe))  # type: ignore[misc]
        sys.stdout = OutputStream(self.sink, STDOUT, 1, "<stdout>")
        sys.stderr = OutputStream(self.sink, STDERR, 2, "<stderr>")
        sys.stdin = InputStream(self.ask_line)
        self.own_streams = (sys.stdout, sys.stderr)
        os.register_at_fork(
            before=self.sink.lock.acquire,
            after_in_parent=self.sink.lock.release,
            after_in_child=self._after_fork_in_child,
        )
        # Whoever started us may have had signals blocked, as Ray's workers have SIGINT.
        pthread_sigmask(SIG_SETMASK, ())
        set_signal_handler(SIGINT, self._on_interrupt)
        set_signal_handler(SIGTERM, self._on_terminate)
        start_new_thread(self.server.serve, (self, self._requests))
        # Whoever imports threading first is its main thread for ever: that must be this one.
        import threading  # noqa: F401

        self._prepared.release()
        self._prepare_runtime()
        while self.jobs.get():
            with self.sink.lock:
                run = self.table.start_next()
            if run is not None:
                self._run_one(run)
        close = getattr(self._runtime, "close", None)
        if close is not None:
            close()

    def _run_one(self, run: Run) -> None:
        sink = self.sink
        sink.restore_fds()
        sink.interrupted = False
        set_signal_handler(SIGINT, self._on_interrupt)
        sink.attach(run)
        try:
            exit_code = self.modes[run.mode](run)
        except BaseException as error:
            sink.guard = 1
            self.report("runner.run_failed", error)
            exit_code = 1
        if sink.in_child:
            os._exit(exit_code & 0xFF)
        sink.detach()
        with sink.lock:
            self.table.end_active(exit_code)
        self.server.wake()

    # -- modes ------------------------------------------------------------------------------------------------

    def _execute_query(self, run: Run) -> int:
        if self._runtime is None:
            self._prepare_runtime()
        return int(self._runtime.execute(run))

    def _execute_batch(self, run: Run) -> int:
        from .batch import execute_steps

        return int(execute_steps(self, run))

    def _execute_startup(self, run: Run) -> int:
        from .startup import execute_startup

        return execute_startup(self, run)

    def _prepare_runtime(self) -> None:
        if self.runtime_name == "shell":
            from .shell import ShellRuntime

            self._runtime = ShellRuntime(self)
        elif self.runtime_name == "python":
            from .query import PythonRuntime

            self._runtime = PythonRuntime(self)
        else:
            from .jupyter import JupyterRuntime

            self._runtime = JupyterRuntime(self)

    def complete(self, code: str) -> list[str]:
        """Return what the name at the end of *code* may become. Any thread."""
        complete = getattr(self._runtime, "complete", None)
        if complete is not None:
            return list(complete(code))
        from .completion import matches

        return matches(code, getattr(self._runtime, "namespace", None) or {})

    def call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call into user code: from here to its return an interrupt raises KeyboardInterrupt."""
        sink = self.sink
        try:
            sink.guard = 0
            if sink.interrupted:
                sink.interrupted = False
                raise KeyboardInterrupt
            return function(*args)
        finally:
            sink.guard = 1

    # -- input and interrupt ----------------------------------------------------------------------------------

    def ask_line(self, password: bool, must_stop: Callable[[], bool] | None = None) -> str:
        """Wait for a line from the client; "" (the end of the input) where nobody can be asked.

        Waiting in the main thread is ended by the signal of an interrupt, elsewhere as soon as *must_stop* says so.
        """
        run = self.sink.run
        if run is None or self.sink.in_child:
            return ""
        try:
            with self.sink.lock:
                run.password = password
                run.waiting_input = True
            self.server.wake()
            while must_stop is not None and not must_stop():
                try:
                    return str(self.inputs.get(True, MUST_STOP_CHECK_S)) + "\n"
                except Empty:
                    pass  # look whether it is still wanted
            return str(self.inputs.get()) + "\n" if must_stop is None else ""
        finally:
            run.waiting_input = False

    def interrupt(self, run_id: str) -> bool:
        """Interrupt the active run (if it is *run_id* or none is named). Service thread."""
        with self.sink.lock:
            run = self.table.active
            if run is None or (run_id and run.id != run_id):
                return False
            run.waiting_input = False
            instead = run.interrupt
            self.sink.free_room()
        if instead is not None:
            instead()
        else:
            pthread_kill(self._main_ident, SIGINT)
        return True

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.sink.guard:
            self.sink.interrupted = self.sink.run is not None
        else:
            raise KeyboardInterrupt

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        """Die of it, unless we are on our way out already: atexit handlers of the user have their time then."""
        if not self._stopping:
            set_signal_handler(SIGTERM, SIG_DFL)
            os.kill(os.getpid(), SIGTERM)

    # -- from spare to session --------------------------------------------------------------------------------

    def adopt(self, environ: dict[str, str]) -> bool:
        """Add a session's environment to the image's; False if that was done before. Service thread."""
        self.wait_until_prepared()
        if not self.is_spare:
            return False
        os.environ.update(environ)
        if "TZ" in environ:
            from time import tzset

            tzset()
        self.is_spare = False
        return True

    # -- helpers ----------------------------------------------------------------------------------------------

    def end_step(self, run: Run, name: str, exit_code: int) -> None:
        """Tell the end of a build step at its place in the output."""
        self.sink.drain_pipes()
        with self.sink.lock:
            run.buffer.force(STEP, "%s %d" % (name, exit_code))
        self.server.wake()

    def start_thread(self, function: Callable[[], None]) -> None:
        start_new_thread(function, ())

    def report(self, event: str, error: BaseException) -> None:
        """Write a fault of the runner itself to the container's own log."""
        try:
            os.write(self._log_fd, ("%s: %r\n" % (event, error)).encode("utf-8", "backslashreplace"))
        except OSError:
            pass

    def begin_shutdown(self, grace_s: float | None = None) -> None:
        """Stop soon: interrupt what runs, let atexit handlers run, and end in any case after a grace.

        With *grace_s* a command is told by SIGTERM and has that many seconds to end by itself.
        """
        if self._stopping:
            return
        self._stopping = True
        with self.sink.lock:
            self.table.cancel_queued()
            active = self.table.active
            group = active.group if active is not None else 0
        if grace_s is not None and group:
            from .batch import signal_group

            signal_group(group, SIGTERM)
        else:
            self.interrupt("")
        self.jobs.put(None)
        end_at = monotonic() + (SHUTDOWN_GRACE_S if grace_s is None else grace_s)

        def end_hard(now: float) -> float:
            if now >= end_at:
                self.leave()
            return end_at

        self.server.timers.append(end_hard)

    def wait_until_prepared(self) -> None:
        """Wait the moment until other threads than the main one may import what they like."""
        with self._prepared:
            pass

    def _check_deadline(self, now: float) -> float | None:
        run = self.table.active
        if run is None or run.deadline is None or run.on_deadline is None:
            return None
        if run.deadline <= now:
            if not run.group:
                return now + 0.05  # the child is about to start
            run.deadline = run.on_deadline(run.group)
        return run.deadline

    def leave(self) -> None:
        """End the process and whatever it started."""
        try:
            from .batch import kill_session

            for session in list(self.sessions):
                kill_session(session)
        finally:
            os._exit(0)

    def _read_pipe(self, pipe: Any) -> bool:
        if self.sink.must_wait():
            return False
        pipe.drain()
        return True

    def _after_fork_in_child(self) -> None:
        self.sink.become_child()
        self.server.close_in_child()

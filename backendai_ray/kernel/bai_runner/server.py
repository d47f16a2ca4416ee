"""The service thread: answers the agent over a ZeroMQ ROUTER and reads the captured pipes.

It never runs user code and never waits for anything but its poll, so that a busy program can still be watched,
interrupted and asked for its output.
"""

from __future__ import annotations

import os
from _thread import get_ident
from time import monotonic, sleep

from . import slimzmq
from .records import STEP
from .runs import ENDED

FLUSH_DELAY_S = 0.001
"""The first output of a quiet run waits this long for more (most often for its end)."""
FLOOD_DELAY_S = 0.003
"""Output that follows an answer this closely is gathered for as long."""
FLUSH_BYTES = 1 << 18
"""This much output is answered at once."""
MAX_REQUESTS_A_TURN = 64
PAUSED_RETRY_S = 0.02
ERROR_PAUSE_S = 0.05

MYPY = False
if MYPY:
    from collections.abc import Callable
    from typing import Any

    from .requests import Requests
    from .runner import Runner
    from .runs import Run


class Waiter:
    """A poll that is answered when its run has something to tell, or at its deadline."""

    __slots__ = ("after_seq", "deadline", "head", "identity", "max_bytes")

    def __init__(self, identity: bytes, head: bytes, after_seq: int, max_bytes: int, deadline: float) -> None:
        self.identity = identity
        self.head = head
        self.after_seq = after_seq
        self.max_bytes = max_bytes
        self.deadline = deadline


class Server:
    """One ROUTER socket and the file descriptors that others ask it to watch."""

    def __init__(self, zmq: Any, path: str) -> None:
        self.zmq = zmq
        self._path = path
        self._zmq_poll = zmq.zmq_poll
        self._context = zmq.Context(1)
        self._socket = zmq.Socket(self._context, slimzmq.ROUTER)
        self._socket.set(slimzmq.LINGER, 500)
        self._socket.set(slimzmq.SNDHWM, 0)
        self._socket.set(slimzmq.RCVHWM, 0)
        self._socket.bind("ipc://" + path)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._watched: dict[int, Callable[[], bool]] = {}
        self._paused: dict[int, float] = {}
        self._posted: list[Callable[[], None]] = []
        self._polled: dict[str, Run] = {}
        self._stopping = False
        self.timers: list[Callable[[float], float | None]] = []
        """Called every turn with the time; each returns when it wants to be called again."""

    def wake(self) -> None:
        """Make the service thread look again, from any thread."""
        try:
            os.write(self._wake_write, b"w")
        except OSError:
            pass  # the pipe is full, so it will wake up anyway; or we are a forked child

    def post(self, job: Callable[[], None]) -> None:
        """Run *job* in the service thread."""
        self._posted.append(job)
        self.wake()

    def watch(self, fd: int, on_readable: Callable[[], bool]) -> None:
        """Call *on_readable* when *fd* can be read; False from it pauses for a moment. Service thread only."""
        self._watched[fd] = on_readable

    def unwatch(self, fd: int) -> None:
        self._watched.pop(fd, None)
        self._paused.pop(fd, None)

    def stop(self) -> None:
        self._stopping = True
        self.wake()

    def close_in_child(self) -> None:
        """In a forked child: close our sockets, which would keep the agent's connection open after our death."""
        from _socket import socket

        for entry in os.listdir("/proc/self/fd"):
            try:
                if not os.readlink("/proc/self/fd/" + entry).startswith("socket:"):
                    continue
                peer = socket(fileno=int(entry))
                ours = peer.getsockname() == self._path
                fd = peer.detach()
                if ours:
                    os.close(fd)
            except OSError:
                pass  # it was closed already

    # -- the loop ---------------------------------------------------------------------------------------------

    def serve(self, runner: Runner, requests: Requests) -> None:
        """Answer until stopped. Errors of one turn are reported and the next turn begins."""
        self._runner = runner
        self._requests = requests
        runner.sink.service_thread = get_ident()
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:
                runner.report("runner.service_error", error)
                sleep(ERROR_PAUSE_S)
        self._socket.close()
        self._context.term()

    def _turn(self) -> None:
        now = monotonic()
        watched = [(self._socket, 1), (self._wake_read, 1)]
        watched.extend((fd, 1) for fd in self._watched if self._paused.get(fd, 0.0) <= now)
        due = self._next_due(now)
        timeout_ms = -1 if due is None else max(0, int((due - now) * 1000 + 0.999))
        for source, _ in self._zmq_poll(watched, timeout_ms):
            if source is self._socket:
                continue
            if source == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                on_readable = self._watched.get(source)
                if on_readable is not None and not on_readable():
                    self._paused[source] = monotonic() + PAUSED_RETRY_S
        while self._posted:
            self._posted.pop(0)()
        self._receive()
        self._answer_polls()

    def _next_due(self, now: float) -> float | None:
        due = [when for when in self._paused.values() if when > now]
        for timer in self.timers:
            when = timer(now)
            if when is not None:
                due.append(when)
        for run in self._polled.values():
            if run.flush_at is not None:
                due.append(run.flush_at)
            due.extend(waiter.deadline for waiter in run.polls)
        return min(due) if due else None

    def _receive(self) -> None:
        socket = self._socket
        for _ in range(MAX_REQUESTS_A_TURN):
            if not socket.get(slimzmq.EVENTS) & slimzmq.POLLIN:
                return
            frames = [socket.recv()]
            while socket.get(slimzmq.RCVMORE):
                frames.append(socket.recv())
            identity = frames[0]
            reply = self._requests.handle(identity, frames[1:])
            if reply is not None:
                self.send(identity, reply)

    def send(self, identity: bytes, frames: list[bytes]) -> None:
        """Answer one request. Service thread only."""
        socket = self._socket
        socket.send(identity, slimzmq.SNDMORE)
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            socket.send(frame, 0 if index == last else slimzmq.SNDMORE)

    # -- polls ------------------------------------------------------------------------------------------------

    def poll(self, run: Run, waiter: Waiter) -> None:
        """Answer *waiter* now or keep it. The caller does not hold the lock."""
        now = monotonic()
        sink = self._runner.sink
        with sink.lock:
            run.last_read_at = now
            if run.buffer.acknowledge(waiter.after_seq):
                sink.free_room()
                self._paused.clear()
        run.polls.append(waiter)
        self._polled[run.id] = run

    def _answer_polls(self) -> None:
        sink = self._runner.sink
        for run in list(self._polled.values()):
            now = monotonic()
            with sink.lock:
                ready = self._is_ready(run, now)
                if not ready and run is sink.run:
                    sink.reader_waits = not run.buffer.has_after(run.polls[0].after_seq)
            keep = []
            for waiter in run.polls:
                if ready or waiter.deadline <= now:
                    self._answer(run, waiter, now)
                else:
                    keep.append(waiter)
            run.polls = keep
            if not keep:
                del self._polled[run.id]
                run.flush_at = None

    def _is_ready(self, run: Run, now: float) -> bool:
        if run.state == ENDED or run.waiting_input:
            return True
        if not any(run.buffer.has_after(waiter.after_seq) for waiter in run.polls):
            run.flush_at = None
            return False
        if run.buffer.size >= FLUSH_BYTES or run.buffer.has_step:
            return True
        if run.flush_at is None:
            quiet = now - run.answered_at
            run.flush_at = now + (FLOOD_DELAY_S - quiet if quiet < FLOOD_DELAY_S - FLUSH_DELAY_S else FLUSH_DELAY_S)
        return run.flush_at <= now

    def _answer(self, run: Run, waiter: Waiter, now: float) -> None:
        with self._runner.sink.lock:
            chunks, complete = run.buffer.take(waiter.after_seq, waiter.max_bytes)
            run.last_read_at = run.answered_at = now
            run.flush_at = None
            status, exit_code = "continued", "-"
            kinds = "".join(chunk[1] for chunk in chunks)
            if kinds.endswith(STEP):
                status, exit_code = chunks[-1][2].decode().split(" ")
            elif complete and run.state == ENDED:
                status, exit_code = run.status, str(run.exit_code)
            elif complete and run.waiting_input:
                status = "waiting-input"
            seq = chunks[-1][0] if chunks else min(waiter.after_seq, run.buffer.last_seq)
            meta = "%s %s %d %d %s" % (status, exit_code, seq, run.password, kinds or "-")
        frames = [waiter.head, meta.encode()]
        frames.extend(chunk[2] for chunk in chunks)
        self.send(waiter.identity, frames)

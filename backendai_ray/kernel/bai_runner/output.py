"""Where all output meets: the sink that belongs to the active run, and the pipes behind file descriptors 1 and 2."""

from __future__ import annotations

import os
from _thread import RLock, allocate_lock, get_ident
from codecs import getincrementaldecoder
from time import monotonic

from .records import HTML, LOG, MEDIA, SLICE_CHARS, STDERR, STDOUT, RunBuffer

READER_WINDOW_S = 5.0
"""A run somebody polled this recently has a reader, and writers wait for it instead of losing output."""
BACKGROUND_LIMIT = 1 << 18
"""Bytes kept of what is written while no run is active; they open the next run's output."""
PIPE_BYTES = 1 << 20
ORDER_GAP_S = 0.0003
"""A pause this long between two writes of the program may mean that something else wrote to the pipes."""

_FIONREAD = 0x541B
_F_SETPIPE_SZ = 1031

MYPY = False
if MYPY:
    from collections.abc import Callable
    from typing import Any

    from .runs import Run


class Sink:
    """Takes the output of every thread to the active run, holding writers back when its reader is slow.

    In the main thread an interrupt must not break the buffers: while ``guard`` is not zero the signal handler
    sets ``interrupted`` only, and the write raises when it is done.

    A finalizer or a signal handler of user code may run, and print, at any moment in a thread that holds the lock:
    the lock knows its owner, and such output is put off until the lock is free.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.lock: Any = RLock()
        self.service_thread = 0
        self._put_off: list[tuple[str, str]] = []
        self.background = RunBuffer(BACKGROUND_LIMIT)
        self.run: Run | None = None
        self.buffer = self.background
        self.guard = 0
        self.interrupted = False
        self.in_child = False
        self.reader_waits = False
        """Set by the service thread when a poll waits for output: the next write wakes it."""
        self._wake = wake
        self._main = get_ident()
        self._room_waiters: list[Any] = []
        self._last_write = 0.0
        self._pipes: list[CapturedPipe] = []

    def write(self, kind: str, text: str) -> None:
        """Append to the active run's output; waits while the buffer is full and has a reader."""
        if get_ident() != self._main:
            self._write(kind, text)
            return
        self.guard += 1
        try:
            self._write(kind, text)
        finally:
            self.guard -= 1
        if self.interrupted and not self.guard:
            self.interrupted = False
            raise KeyboardInterrupt

    def _write(self, kind: str, text: str) -> None:
        if self.in_child:
            os.write(2 if kind == STDERR else 1, text.encode("utf-8", "backslashreplace"))
            return
        now = monotonic()
        if now - self._last_write > ORDER_GAP_S:
            self.drain_pipes()
        self._last_write = now
        if len(text) <= SLICE_CHARS:
            self.put(kind, text)
        else:
            for start in range(0, len(text), SLICE_CHARS):
                self.put(kind, text[start : start + SLICE_CHARS])

    def show(self, mime: str, content: str) -> None:
        """Append an image or another piece with a type; binary content comes as base64."""
        if len(content) > self.buffer.limit:
            note = "an output of type %s and %d bytes was left out: it is larger than the buffer" % (mime, len(content))
            self.put(LOG, note)
        elif mime == "text/html":
            self.put(HTML, content)
        else:
            self.put(MEDIA, mime + "\n" + content)

    def put(self, kind: str, text: str) -> None:
        """Append one piece that is kept whole."""
        if self.lock._is_owned():
            self._put_off.append((kind, text))
            return
        with self.lock:
            if self.run is not None and self.run.log is not None:
                self.run.log.write(text)
            while not self.buffer.offer(kind, text):
                if get_ident() == self.service_thread:
                    # A finalizer that ran there prints: it must not wait for what only this thread can do.
                    self.buffer.force(kind, text)
                    break
                if self.interrupted or not self._reader_present():
                    self.buffer.drop(kind, text)
                    break
                self._wait_for_room()
            wake = self.reader_waits
            self.reader_waits = False
        if wake:
            self._wake()
        while self._put_off:
            self.put(*self._put_off.pop(0))

    def put_captured(self, kind: str, text: str) -> None:
        """Append what has been read from a pipe already, without waiting: drop it only if nobody reads."""
        with self.lock:
            if self.run is not None and self.run.log is not None:
                self.run.log.write(text)
            if not self.buffer.offer(kind, text):
                if self._reader_present() and not self.buffer.dropped_bytes:
                    self.buffer.force(kind, text)
                else:
                    self.buffer.drop(kind, text)
            wake = self.reader_waits
            self.reader_waits = False
        if wake:
            self._wake()

    def must_wait(self) -> bool:
        """Whether a writer would have to wait now."""
        with self.lock:
            return not self.buffer.has_room and self._reader_present()

    def free_room(self) -> None:
        """Let the waiting writers look again. The caller holds the lock."""
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            waiter.release()

    def _reader_present(self) -> bool:
        return self.run is not None and monotonic() - self.run.last_read_at < READER_WINDOW_S

    def _wait_for_room(self) -> None:
        """Give the lock away until there is room or a moment has passed."""
        waiter = allocate_lock()
        waiter.acquire()
        self._room_waiters.append(waiter)
        self.lock.release()
        try:
            self._wake()
            waiter.acquire(True, 0.1)
        finally:
            self.lock.acquire()

    def become_child(self) -> None:
        """In a forked child: write to the descriptors (our parent captures them), not to memory."""
        self.in_child = True
        self.lock = RLock()

    # -- the active run ---------------------------------------------------------------------------------------

    def attach(self, run: Run) -> None:
        """Make *run* the owner of all output from now on."""
        self.drain_pipes()
        with self.lock:
            self.background.move_into(run.buffer)
            self.run = run
            self.buffer = run.buffer
            self.reader_waits = bool(run.polls)

    def detach(self) -> None:
        """Take in what the run's processes have written so far, then let go of the run."""
        for pipe in self._pipes:
            pipe.drain(final=True)
        with self.lock:
            self.buffer.mark_dropped()
            self.run = None
            self.buffer = self.background
            self.free_room()

    # -- file descriptors -------------------------------------------------------------------------------------

    def capture(self) -> list[CapturedPipe]:
        """Put pipes behind file descriptors 1 and 2."""
        self._pipes = [CapturedPipe(self, 1, STDOUT), CapturedPipe(self, 2, STDERR)]
        return self._pipes

    def drain_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.drain()

    def capture_ends(self) -> list[int]:
        """The write ends of the pipes behind descriptors 1 and 2, whatever a program did to these."""
        return [pipe.write_end for pipe in self._pipes]

    def restore_fds(self) -> None:
        """Open file descriptors 1 and 2 again where a program has closed them."""
        for pipe in self._pipes:
            try:
                os.fstat(pipe.fd)
            except OSError:
                os.dup2(pipe.write_end, pipe.fd)


class CapturedPipe:
    """What subprocesses and C code write to one of the standard descriptors."""

    def __init__(self, sink: Sink, fd: int, kind: str) -> None:
        import fcntl

        self.fd = fd
        self.kind = kind
        self.read_end, self.write_end = os.pipe()
        try:
            fcntl.fcntl(self.write_end, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # more than this user may have: the default size does
        os.dup2(self.write_end, fd)
        self._ioctl = fcntl.ioctl
        self._sink = sink
        self._lock: Any = RLock()
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def drain(self, final: bool = False) -> None:
        """Take in all that is in the pipe at this moment."""
        if self._lock._is_owned():
            return  # a finalizer prints while we are here already
        with self._lock:
            waiting = int.from_bytes(self._ioctl(self.read_end, _FIONREAD, b"\0\0\0\0"), "little")
            if waiting or final:
                data = os.read(self.read_end, waiting) if waiting else b""
                self._take(self._decoder.decode(data, final))

    def _take(self, text: str) -> None:
        for start in range(0, len(text), SLICE_CHARS):
            self._sink.put_captured(self.kind, text[start : start + SLICE_CHARS])

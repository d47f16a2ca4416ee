"""Terminals: shells on real ptys, with enough of their output kept that a client may come back."""

from __future__ import annotations

import errno
import os
from signal import SIGHUP
from time import monotonic

from .batch import kill_session, signal_group
from .requests import MAX_WAIT_S, Refused

MAX_OPEN = 16
MAX_REMEMBERED = 32
REPLAY_BYTES = 1 << 20
PAUSE_BYTES = REPLAY_BYTES // 2
"""A terminal whose reader is behind by this much is not read on until the reader has caught up."""
READER_WINDOW_S = 5.0
MAX_UNWRITTEN = 1 << 20
READ_BYTES = 1 << 16
CHILD_CHECK_S = 0.2
RETRY_S = 0.01
KILL_GRACE_S = 1.0
_TIOCSWINSZ = 0x5414

# The session leader that opens a tty without having one gets it as its controlling terminal.
TAKE_TTY = 'exec 0<>"$0" 1>&0 2>&0; exec "$@"'

MYPY = False
if MYPY:
    from typing import Any

    from .runner import Runner


class Terminals:
    """All terminals of a runner. Lives in the service thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._terminals: dict[str, Terminal] = {}
        self._kill_at: dict[int, float] = {}
        runner.server.timers.append(self._tick)

    def handle(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes] | None:
        """Carry out one ``pty`` request."""
        action, name = args[0], args[1].decode()
        if action == b"open":
            rows, cols = (int(word) for word in args[2].split(b" "))
            self._open(name, rows, cols, args[3].decode())
            return []
        if action == b"close":
            self._close(name)
            return []
        terminal = self._terminals.get(name)
        if terminal is None:
            raise Refused("unknown-run", "there is no terminal %r" % name)
        if action == b"write":
            terminal.write(args[2])
        elif action == b"resize":
            rows, cols = (int(word) for word in args[2].split(b" "))
            terminal.resize(rows, cols)
        elif action == b"read":
            after, wait_ms, max_bytes = (int(word) for word in args[2].split(b" "))
            deadline = monotonic() + min(wait_ms / 1000.0, MAX_WAIT_S)
            terminal.readers.append((identity, head, after, max_bytes, deadline))
            terminal.note_reader(after)
            self._answer(terminal)
            return None
        else:
            raise Refused("bad-request", "pty: unknown action %r" % action)
        return []

    def _open(self, name: str, rows: int, cols: int, command: str) -> None:
        if name in self._terminals:
            return
        open_ones = [terminal for terminal in self._terminals.values() if terminal.exit_code is None]
        if len(open_ones) >= MAX_OPEN:
            raise Refused("too-many", "%d terminals are open; close one first" % MAX_OPEN)
        for old in [key for key, terminal in self._terminals.items() if terminal.exit_code is not None]:
            if len(self._terminals) >= MAX_REMEMBERED:
                del self._terminals[old]
        terminal = Terminal(self._runner.workdir, rows, cols, command)
        self._terminals[name] = terminal
        self._runner.sessions.add(terminal.child.pid)
        self._runner.server.watch(terminal.master, lambda: self._on_readable(terminal))

    def _on_readable(self, terminal: Terminal) -> bool:
        if terminal.must_wait():
            return False
        if not terminal.read():
            self._runner.server.unwatch(terminal.master)
        self._release_ended(terminal)
        self._answer(terminal)
        return True

    def _release_ended(self, terminal: Terminal) -> None:
        if terminal.exit_code is not None and terminal.master >= 0:
            self._runner.server.unwatch(terminal.master)
            terminal.hang_up()

    def _close(self, name: str) -> None:
        terminal = self._terminals.pop(name, None)
        if terminal is None:
            return
        if terminal.master >= 0:
            self._runner.server.unwatch(terminal.master)
            terminal.hang_up()
            self._kill_at[terminal.child.pid] = monotonic() + KILL_GRACE_S
        terminal.exit_code = terminal.exit_code if terminal.exit_code is not None else 128 + SIGHUP
        self._answer(terminal)

    def _tick(self, now: float) -> float | None:
        due = list(self._kill_at.values())
        for session, when in list(self._kill_at.items()):
            if when <= now:
                del self._kill_at[session]
                kill_session(session)
                self._runner.sessions.discard(session)
        for terminal in self._terminals.values():
            if terminal.unwritten:
                terminal.write(b"")
                due.append(now + RETRY_S)
            if terminal.exit_code is None:
                terminal.check_child()
                self._release_ended(terminal)
                due.append(now + CHILD_CHECK_S)
            self._answer(terminal)
            due.extend(reader[4] for reader in terminal.readers)
        return min(due) if due else None

    def _answer(self, terminal: Terminal) -> None:
        now = monotonic()
        keep = []
        for identity, head, after, max_bytes, deadline in terminal.readers:
            if after >= terminal.end and not terminal.has_ended and deadline > now:
                keep.append((identity, head, after, max_bytes, deadline))
                continue
            offset, skipped, data = terminal.since(after, max_bytes)
            told = str(terminal.exit_code) if terminal.has_ended and offset == terminal.end else "-"
            meta = "%d %d %s" % (offset, skipped, told)
            self._runner.server.send(identity, [head, meta.encode(), data])
        terminal.readers = keep


class Terminal:
    """One pty with its shell."""

    def __init__(self, directory: str, rows: int, cols: int, command: str) -> None:
        import subprocess

        self.master, slave = os.openpty()
        os.set_blocking(self.master, False)
        self.resize(rows, cols)
        shell = next((s for s in (os.environ.get("SHELL"), "/bin/bash") if s and os.access(s, os.X_OK)), "/bin/sh")
        words = [shell, "-c", command] if command else [shell, "-l"]
        try:
            self.child: Any = subprocess.Popen(
                ["/bin/sh", "-c", TAKE_TTY, os.ttyname(slave), *words],
                cwd=directory or None,
                env=dict(os.environ, TERM="xterm-256color"),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            os.close(slave)
        self.exit_code: int | None = None
        self.eof = False
        self.unwritten = b""
        self.readers: list[Any] = []
        self.end = 0
        self._data = bytearray()
        self._read_up_to = 0
        self._read_at = monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether there is no more output to come."""
        return self.exit_code is not None

    def read(self) -> bool:
        """Take in what there is; False at the end of the terminal."""
        try:
            data = os.read(self.master, READ_BYTES)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return True
            data = b""  # EIO: nobody holds the other side any more
        if not data:
            self.eof = True
            self.check_child()
            return False
        self._data += data
        self.end += len(data)
        if len(self._data) > REPLAY_BYTES:
            del self._data[: len(self._data) - REPLAY_BYTES]
        return True

    def must_wait(self) -> bool:
        behind = self.end - self._read_up_to
        return behind >= PAUSE_BYTES and monotonic() - self._read_at < READER_WINDOW_S

    def note_reader(self, after: int) -> None:
        self._read_up_to = max(self._read_up_to, min(after, self.end))
        self._read_at = monotonic()

    def since(self, after: int, max_bytes: int) -> tuple[int, int, bytes]:
        """Return (offset after it, bytes that are gone, data) of what follows *after*."""
        first = self.end - len(self._data)
        start = min(max(after, first), self.end)
        data = bytes(self._data[start - first : start - first + max_bytes])
        return start + len(data), max(0, start - after), data

    def write(self, data: bytes) -> None:
        """Type; what the terminal does not take now is written later."""
        if self.master < 0:
            return
        if len(self.unwritten) + len(data) > MAX_UNWRITTEN:
            raise Refused("busy", "the terminal's program does not read what was typed before")
        self.unwritten += data
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[os.write(self.master, self.unwritten) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self.unwritten = b""  # the program is gone

    def resize(self, rows: int, cols: int) -> None:
        from fcntl import ioctl
        from struct import pack

        if not (0 < rows < 10000 and 0 < cols < 10000):
            raise Refused("bad-request", "rows, cols: must be from 1 to 9999")
        if self.master < 0:
            return
        ioctl(self.master, _TIOCSWINSZ, pack("HHHH", rows, cols, 0, 0))

    def check_child(self) -> None:
        """Note the shell's end, once its output is in."""
        code = self.child.poll()
        if code is None:
            return
        while not self.eof and self._drain_some():
            pass
        self.exit_code = code if code >= 0 else 128 - code

    def _drain_some(self) -> bool:
        end = self.end
        return self.read() and self.end > end

    def hang_up(self) -> None:
        """Let go of the terminal; its processes are told."""
        if self.child.returncode is None:
            signal_group(self.child.pid, SIGHUP)
        os.close(self.master)
        self.master = -1

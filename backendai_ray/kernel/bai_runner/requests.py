"""What the agent may ask of a runner: one method per verb (see docs/reference/runner-protocol.md)."""

from __future__ import annotations

import sys
from _operator import _compare_digest
from time import monotonic

from . import PROTOCOL_VERSION
from .runs import QueueFull
from .server import Waiter

MAX_WAIT_S = 60.0

MYPY = False
if MYPY:
    from typing import Any

    from .runner import Runner
    from .runs import Run


class Refused(Exception):
    """A request that gets an error for an answer: ``code`` for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        Exception.__init__(self, message)
        self.code = code


class Requests:
    """Handles requests in the service thread. A verb returns its answer's frames, or None to answer later."""

    def __init__(self, runner: Runner, token: bytes) -> None:
        self._runner = runner
        self._token = token
        self._terminals: Any = None

    def handle(self, identity: bytes, frames: list[bytes]) -> list[bytes] | None:
        head = b"? "
        try:
            if len(frames) < 2 or not _compare_digest(frames[0], self._token):
                head = frames[1].split(b" ")[0] + b" " if len(frames) > 1 else head
                raise Refused("unauthorized", "the token is not this runner's")
            number, _, verb = frames[1].partition(b" ")
            head = number + b" "
            method = getattr(self, "do_" + verb.decode("ascii", "replace"), None)
            if method is None:
                raise Refused("unknown-verb", "this runner does not know %r" % verb)
            answer = method(identity, head + b"ok", frames[2:])
            return None if answer is None else [head + b"ok", *answer]
        except Refused as refusal:
            return [head + b"error " + refusal.code.encode(), str(refusal).encode("utf-8", "replace")]
        except (ValueError, IndexError) as error:
            return [head + b"error bad-request", str(error).encode("utf-8", "replace")]
        except Exception as error:
            self._runner.report("runner.request_failed", error)
            return [head + b"error internal", repr(error).encode("utf-8", "replace")]

    # -- the runner itself ------------------------------------------------------------------------------------

    def do_hello(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        facts = {
            "protocol": PROTOCOL_VERSION,
            "pid": self._runner.pid,
            "python": "%d.%d.%d" % sys.version_info[:3],
            "implementation": sys.implementation.name,
            "runtime": self._runner.runtime_name,
            "started_at": "%.6f" % self._runner.started_at,
            "spare": int(self._runner.is_spare),
        }
        return [_pairs(facts), *self.do_status(identity, head, args)]

    def do_adopt(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        """Frames: the session's environment."""
        return [b"1" if self._runner.adopt(_parse_pairs(args[0])) else b"0"]

    def do_status(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        runner = self._runner
        with runner.sink.lock:
            active, queued, ended = runner.table.summary()
        return [active.encode(), "\n".join(queued).encode(), "\n".join(ended).encode()]

    def do_shutdown(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        """Frames: none, or how long (seconds) commands have between their notice, a SIGTERM, and the end."""
        self._runner.begin_shutdown(float(args[0]) if args else None)
        return []

    # -- runs -------------------------------------------------------------------------------------------------

    def do_execute(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes] | None:
        """Frames: run id, mode, code, options, then wait_ms and max_bytes (``0 0``: do not poll)."""
        run_id, mode, code = args[0].decode(), args[1].decode(), args[2].decode()
        if not run_id or "\n" in run_id:
            raise Refused("bad-request", "run_id: must be one line and not empty")
        wait_ms, max_bytes = (int(word) for word in args[4].split(b" "))
        runner = self._runner
        with runner.sink.lock:
            run = runner.table.get(run_id)
            if run is None:
                if mode not in runner.modes:
                    raise Refused("unsupported", "mode: this runner has %s" % ", ".join(sorted(runner.modes)))
                try:
                    run = runner.table.add(run_id, mode, code, _parse_pairs(args[3]))
                except QueueFull:
                    raise Refused("busy", "too many runs are waiting; try again when one has ended") from None
                runner.jobs.put(True)
        if max_bytes <= 0:
            return [run.state.encode()]
        return self._poll(run, identity, head, 0, wait_ms, max_bytes)

    def do_poll(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes] | None:
        """Frames: run id, then after_seq, wait_ms and max_bytes."""
        after_seq, wait_ms, max_bytes = (int(word) for word in args[1].split(b" "))
        return self._poll(self._known(args[0]), identity, head, after_seq, wait_ms, max_bytes)

    def _poll(
        self, run: Run, identity: bytes, head: bytes, after_seq: int, wait_ms: int, max_bytes: int
    ) -> list[bytes] | None:
        deadline = monotonic() + min(wait_ms / 1000.0, MAX_WAIT_S)
        self._runner.server.poll(run, Waiter(identity, head, after_seq, max_bytes, deadline))
        return None

    def do_input(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        """Frames: run id, the line without its end."""
        run = self._known(args[0])
        with self._runner.sink.lock:
            if not run.waiting_input:
                raise Refused("not-waiting", "the run does not wait for input")
            run.waiting_input = False
        self._runner.inputs.put(args[1].decode())
        return []

    def do_interrupt(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes]:
        """Frames: run id, or nothing for whatever is running."""
        return [b"1" if self._runner.interrupt(args[0].decode() if args else "") else b"0"]

    def do_complete(self, identity: bytes, head: bytes, args: list[bytes]) -> None:
        """Frames: code up to the cursor. Answered from a thread of its own: attributes may be slow to look up."""
        runner = self._runner
        runner.wait_until_prepared()

        def answer() -> None:
            try:
                found = runner.complete(args[0].decode())
            except Exception as error:
                runner.report("runner.completion_failed", error)
                found = []
            frames = [head, "\n".join(found).encode("utf-8", "replace")]
            runner.server.post(lambda: runner.server.send(identity, frames))

        runner.start_thread(answer)

    # -- terminals --------------------------------------------------------------------------------------------

    def do_pty(self, identity: bytes, head: bytes, args: list[bytes]) -> list[bytes] | None:
        """Frames: action, terminal id, then what the action needs."""
        if self._terminals is None:
            self._runner.wait_until_prepared()
            from .terminals import Terminals

            self._terminals = Terminals(self._runner)
        answer: list[bytes] | None = self._terminals.handle(identity, head, args)
        return answer

    def _known(self, run_id: bytes) -> Run:
        with self._runner.sink.lock:
            run = self._runner.table.get(run_id.decode())
        if run is None:
            raise Refused("unknown-run", "this runner knows no run %r" % run_id.decode())
        return run


def _pairs(facts: dict[str, Any]) -> bytes:
    return "\n".join("%s=%s" % item for item in facts.items()).encode()


def _parse_pairs(frame: bytes) -> dict[str, str]:
    """Options, one a NUL-separated ``name=value`` (values may hold line ends)."""
    pairs = (item.partition("=") for item in frame.decode().split("\0") if item)
    return {name: value for name, _, value in pairs}

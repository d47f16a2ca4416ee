"""The Jupyter runtime: query mode for any kernel whose kernelspec the image has.

The kernel is a process beside the runner, with a state that it keeps between runs. When it dies, the run that was
active says so, and the next one starts it again.
"""

from __future__ import annotations

import re
from time import monotonic

from .display import BUNDLE_ORDER
from .jupyter_kernel import IOPUB, SHELL, STDIN, Kernel
from .kernelspecs import BUILT_IN, find_kernelspecs
from .records import STDERR, STDOUT

START_TIMEOUT_S = 60.0
UNIX_SOCKET_TIMEOUT_S = 30.0
"""A kernel that has not answered by then gets TCP ports instead."""
POLL_S = 0.1
SAME_MOMENT_S = 0.02
LAST_OUTPUT_S = 1.0
"""Output may come this long after the reply."""
COMPLETION_TIMEOUT_S = 8.0
MAX_MATCHES = 500
INTERRUPTED_EXIT_CODE = 130
NO_KERNEL_EXIT_CODE = 127
_COLOURS = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]")
_MARKUP = re.compile(r"<(table|img|svg|div|iframe|script|video|audio|canvas|object|embed|form|input|a|h\d|p)\b", re.I)

MYPY = False
if MYPY:
    from typing import Any

    from .runner import Runner
    from .runs import Run


class KernelFailed(Exception):
    """There is no kernel (any more) to run the cell; the message is for people."""

    def __init__(self, message: str, exit_code: int) -> None:
        Exception.__init__(self, message)
        self.exit_code = exit_code


class JupyterRuntime:
    """Keeps the kernel; one cell at a time. It starts at once, so that the first cell finds it ready."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._name = runner.runtime_name
        self._kernel: Kernel | None = None
        self._transport = "ipc"
        self._interrupts = 0
        self._is_busy = False
        try:
            self._kernel = self._start()
        except (KernelFailed, OSError):
            pass  # the first run tries again, and tells

    def execute(self, run: Run) -> int:
        """Run one cell; returns 0, 1 after an error, 130 after an interrupt, 128+n if a signal ended the kernel."""
        self._interrupts = 0
        self._is_busy = True
        run.interrupt = self._interrupt
        try:
            if self._runner.sink.interrupted:
                return INTERRUPTED_EXIT_CODE
            kernel = self._ready_kernel()
            return INTERRUPTED_EXIT_CODE if kernel is None else self._run_cell(kernel, run)
        except KernelFailed as failure:
            self._discard()
            self._runner.sink.write(STDERR, "%s\n" % failure)
            return failure.exit_code
        finally:
            run.interrupt = None
            self._is_busy = False

    def complete(self, code: str) -> list[str]:
        """Return what the name at the end of *code* may become; nothing while the kernel is busy. Any thread."""
        kernel = self._kernel
        if kernel is None or self._is_busy or kernel.exit_code() is not None:
            return []
        answer = kernel.ask("complete_request", {"code": code, "cursor_pos": len(code)}, COMPLETION_TIMEOUT_S)
        found, start = answer.get("matches") or [], answer.get("cursor_start", len(code))
        word = re.search(r"[\w.]*$", code)
        begin = word.start() if word is not None else len(code)
        # Kernels answer with what comes after a dot alone, or with all of it; our callers want the whole name.
        before = code[begin:start] if isinstance(start, int) and start > begin else ""
        return [before + str(match) for match in found[:MAX_MATCHES]]

    def close(self) -> None:
        """End the kernel, and let it clean up."""
        if self._kernel is not None:
            self._runner.sessions.discard(self._kernel.process.pid)
            self._kernel.close(politely=True)
            self._kernel = None

    # -- the kernel's life ------------------------------------------------------------------------------------

    def _start(self) -> Kernel:
        specs = find_kernelspecs()
        if self._name not in specs:
            there = ", ".join([*BUILT_IN, *sorted(specs)])
            raise KernelFailed("there is no runtime %r here; there are: %s" % (self._name, there), NO_KERNEL_EXIT_CODE)
        runner = self._runner
        out = runner.sink.capture_ends()
        spec = specs[self._name]
        try:
            kernel = Kernel(runner.server.zmq, spec, self._transport, runner.run_dir, runner.workdir, out)
        except OSError as error:
            said = "the kernel of the runtime %r cannot be started: %s" % (self._name, error)
            raise KernelFailed(said, NO_KERNEL_EXIT_CODE) from None
        runner.sessions.add(kernel.process.pid)
        return kernel

    def _ready_kernel(self) -> Kernel | None:
        """Return the kernel when it answers; None when an interrupt came before it did."""
        kernel = self._kernel
        if kernel is not None and kernel.is_ready:
            if kernel.exit_code() is None:
                return kernel
            said = "the kernel of the runtime %r had ended (%s); it was started again, without its variables\n"
            self._runner.sink.write(STDERR, said % (self._name, _how(kernel.exit_code())))
            self._discard()
        if self._kernel is None:
            self._kernel = self._start()
        return self._greet(self._kernel)

    def _greet(self, kernel: Kernel) -> Kernel | None:
        """Wait for its answer; one that does not work with Unix sockets is started again with TCP ports."""
        limit = UNIX_SOCKET_TIMEOUT_S if kernel.transport == "ipc" else START_TIMEOUT_S
        if kernel.greet(monotonic() + limit, lambda: self._interrupts > 0):
            return kernel
        if self._interrupts:
            return None
        if kernel.transport == "ipc":
            self._discard()
            self._transport = "tcp"
            self._kernel = self._start()
            return self._greet(self._kernel)
        how = _how(kernel.exit_code()) if kernel.exit_code() is not None else "no answer within %d s" % START_TIMEOUT_S
        self._transport = "ipc"
        raise KernelFailed("the kernel of the runtime %r does not start: %s" % (self._name, how), 1)

    def _discard(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close()
            self._runner.sessions.discard(kernel.process.pid)

    def _interrupt(self) -> None:
        """In the service thread: SIGINT or its message first, SIGKILL from the third on."""
        self._interrupts += 1
        kernel = self._kernel
        if kernel is None or not kernel.is_ready:
            return  # who waits for it to start looks at the count
        if self._interrupts > 2:
            kernel.kill()
        else:
            kernel.interrupt()

    # -- one cell ---------------------------------------------------------------------------------------------

    def _run_cell(self, kernel: Kernel, run: Run) -> int:
        content = {"code": run.code, "silent": False, "store_history": True, "user_expressions": {}}
        content.update(allow_stdin=True, stop_on_error=True)
        cell = _Cell(kernel.send(SHELL, "execute_request", content))
        while not cell.has_ended():
            if not self._take_in(kernel, cell, POLL_S) and kernel.exit_code() is not None:
                break  # never sent again: nobody can tell how far it came
            if cell.question is not None:
                question, cell.question = cell.question, None
                self._answer_input(kernel, cell, question)
        return self._end_of_cell(kernel, cell.reply)

    def _take_in(self, kernel: Kernel, cell: _Cell, wait_s: float) -> bool:
        """Take in what the kernel has sent, waiting for it at most *wait_s*; whether there was anything."""
        received = kernel.receive(wait_s)
        for channel, message in received:
            if not cell.take(channel, message) and channel == IOPUB:
                self._show(str(message["header"].get("msg_type")), message["content"])
        return bool(received)

    def _end_of_cell(self, kernel: Kernel, reply: dict[str, Any]) -> int:
        wants_to_end = any(
            isinstance(item, dict) and item.get("source") == "ask_exit" and not item.get("keepkernel")
            for item in reply.get("payload") or ()
        )
        if wants_to_end:
            self._discard()
            return 0
        if not reply:
            how = _how(kernel.exit_code())
            said = "the kernel of the runtime %r ended (%s); the next run starts it again, without its variables"
            returncode = kernel.exit_code() or 0
            raise KernelFailed(said % (self._name, how), returncode if returncode >= 0 else 128 - returncode)
        if reply.get("status") == "ok":
            return 0
        return INTERRUPTED_EXIT_CODE if self._interrupts else 1

    def _answer_input(self, kernel: Kernel, cell: _Cell, request: dict[str, Any]) -> None:
        while self._take_in(kernel, cell, SAME_MOMENT_S):
            pass  # what was printed before the question comes by another way
        asked = request["content"]
        if asked.get("prompt"):
            self._runner.sink.write(STDOUT, str(asked["prompt"]))

        def must_stop() -> bool:
            self._take_in(kernel, cell, 0)
            return self._interrupts > 0 or kernel.exit_code() is not None

        line = self._runner.ask_line(bool(asked.get("password")), must_stop)
        if line:
            kernel.send(STDIN, "input_reply", {"value": line[:-1]}, request["header"])

    def _show(self, kind: str, content: dict[str, Any]) -> None:
        """Put a message of the output channel into the run's output; messages about the kernel itself are passed."""
        sink = self._runner.sink
        if kind == "stream":
            text = str(content.get("text") or "")
            if text:
                sink.write(STDERR if content.get("name") == "stderr" else STDOUT, text)
        elif kind in ("display_data", "execute_result", "update_display_data"):
            mime, text = richest(content.get("data") or {})
            if mime == "text/plain":
                sink.write(STDOUT, text + "\n")
            elif mime:
                sink.show(mime, text)
        elif kind == "error":
            lines = content.get("traceback") or ["%s: %s" % (content.get("ename"), content.get("evalue"))]
            sink.write(STDERR, _COLOURS.sub("", "\n".join(str(line) for line in lines)).rstrip("\n") + "\n")


class _Cell:
    """What is known of one execution: an answer on one channel and the end of its output on another."""

    def __init__(self, message_id: str) -> None:
        self._id = message_id
        self._is_idle = False
        self._replied_at = 0.0
        self.reply: dict[str, Any] = {}
        self.question: dict[str, Any] | None = None

    def take(self, channel: str, message: dict[str, Any]) -> bool:
        """Take note of a message; False if it is output to be shown."""
        kind, is_ours = message["header"].get("msg_type"), message["parent"].get("msg_id") == self._id
        if channel == SHELL and is_ours:
            self.reply, self._replied_at = message["content"], monotonic()
        elif channel == STDIN and kind == "input_request":
            self.question = message
        elif channel == IOPUB and kind == "status":
            self._is_idle |= is_ours and message["content"].get("execution_state") == "idle"
        else:
            return False
        return True

    def has_ended(self) -> bool:
        return bool(self.reply) and (self._is_idle or monotonic() - self._replied_at > LAST_OUTPUT_S)


def richest(bundle: dict[str, Any]) -> tuple[str, str]:
    """Return (mime type, content) of the form to show of a value; ("", "") if none is known.

    Some kernels say every value in HTML too: where that says no more than the text (a number, a list), it is the text.
    """
    html, plain = _text(bundle.get("text/html")), _text(bundle.get("text/plain"))
    says_no_more = bool(html and plain) and _MARKUP.search(html) is None
    for mime in BUNDLE_ORDER:
        if bundle.get(mime) and not (says_no_more and mime.startswith("text/")):
            return mime, _text(bundle[mime])
    return ("text/plain", plain) if plain else ("", "")


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(line, str) for line in content):
        return "".join(content)
    import json

    return json.dumps(content)


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "it does not answer"
    return "exit code %d" % returncode if returncode >= 0 else "signal %d" % -returncode

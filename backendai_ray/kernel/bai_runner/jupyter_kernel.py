"""One Jupyter kernel: its process, its connection file and the sockets to it.

The sockets are Unix ones, so that no port is taken and nobody else's reach is widened; a kernel that cannot use such
gets TCP ports on the loopback. All sockets but those of :meth:`Kernel.ask` and :meth:`Kernel.notify` belong to the
main thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from binascii import hexlify
from signal import SIGINT
from time import monotonic, sleep

from . import slimzmq
from .batch import kill_session, signal_group
from .jupyter_wire import Wire

SHELL, IOPUB, STDIN, CONTROL = "shell", "iopub", "stdin", "control"
_PORTS = (SHELL, IOPUB, STDIN, CONTROL, "hb")
MAX_WAITING_MESSAGES = 50000
MAX_SOCKET_PATH_BYTES = 107
LOOK_S = 0.02
NUDGE_S = 0.5
SHUTDOWN_S = 1.0

MYPY = False
if MYPY:
    from typing import Any


class Kernel:
    """A kernel's process, started when this is made.

    Raises:
        OSError: the command of the kernelspec cannot be started.
    """

    def __init__(self, zmq: Any, spec: dict[str, Any], transport: str, run_dir: str, workdir: str, out: Any) -> None:
        import subprocess

        self.zmq = zmq
        self.transport = transport
        self.is_ready = False
        """It has answered once."""
        self._by_message = spec["interrupt_mode"] == "message"
        self._context = zmq.Context(1)
        self._folder = _private_folder(run_dir)
        key = hexlify(os.urandom(32))
        self._wire = Wire(key)
        self._sockets: dict[str, Any] = {}
        self._ports = _free_ports() if transport == "tcp" else {name: number for number, name in enumerate(_PORTS, 1)}
        path = self._write_connection_file(key)
        places = {"{connection_file}": path, "{resource_dir}": spec["folder"]}
        argv = [_fill(word, places) for word in spec["argv"]]
        argv[0] = _command(argv[0], spec["folder"])
        self.process = subprocess.Popen(
            argv,
            cwd=workdir or None,
            env=_environ(spec["env"]),
            stdin=subprocess.DEVNULL,
            stdout=out[0],
            stderr=out[1],
            start_new_session=True,
        )

    def exit_code(self) -> int | None:
        """How it has ended; None while it lives."""
        return self.process.poll()

    # -- talking ----------------------------------------------------------------------------------------------

    def greet(self, deadline: float, must_stop: Any) -> bool:
        """Wait until it answers and its output arrives; False if it ended, was too late or *must_stop* says so."""
        if not self._await_sockets(deadline, must_stop):
            return False
        self._sockets = {
            SHELL: self._connect(SHELL, slimzmq.DEALER, self._wire.identity),
            STDIN: self._connect(STDIN, slimzmq.DEALER, self._wire.identity),
            IOPUB: self._connect(IOPUB, slimzmq.SUB),
        }
        asked_at, has_answered, is_heard = 0.0, False, False
        while not (has_answered and is_heard):
            now = monotonic()
            if now >= deadline or must_stop() or self.exit_code() is not None:
                return False
            if now - asked_at >= NUDGE_S:  # whoever subscribes late misses the first output: ask until some is seen
                self.send(SHELL, "kernel_info_request", {})
                asked_at = now
            for channel, _ in self.receive(LOOK_S):
                has_answered |= channel == SHELL
                is_heard |= channel == IOPUB
        self.is_ready = True
        return True

    def send(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> str:
        """Send a message; returns its id."""
        message_id, frames = self._wire.pack(kind, content, parent)
        _send(self._sockets[channel], frames)
        return message_id

    def receive(self, wait_s: float) -> list[tuple[str, dict[str, Any]]]:
        """Return what has come, waiting for something at most *wait_s*."""
        self.zmq.zmq_poll([(socket, slimzmq.POLLIN) for socket in self._sockets.values()], int(wait_s * 1000))
        received = []
        for channel, socket in self._sockets.items():
            for _ in range(1000):
                if not socket.get(slimzmq.EVENTS) & slimzmq.POLLIN:
                    break
                message = self._wire.unpack(_receive(socket))
                if message is not None:
                    received.append((channel, message))
        return received

    def ask(self, kind: str, content: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask on the shell channel over a connection of its own; nothing if no answer came in time. Any thread."""
        deadline = monotonic() + timeout_s
        if not self._await_sockets(deadline, lambda: False):
            return {}
        socket = self._connect(SHELL, slimzmq.DEALER)
        try:
            asked, frames = self._wire.pack(kind, content)
            _send(socket, frames)
            while self.exit_code() is None and monotonic() < deadline:
                self.zmq.zmq_poll([(socket, slimzmq.POLLIN)], 100)
                while socket.get(slimzmq.EVENTS) & slimzmq.POLLIN:
                    message = self._wire.unpack(_receive(socket))
                    if message is not None and message["parent"].get("msg_id") == asked:
                        answer: dict[str, Any] = message["content"]
                        return answer
        finally:
            socket.set(slimzmq.LINGER, 0)
            socket.close()
        return {}

    def notify(self, kind: str, content: dict[str, Any]) -> None:
        """Send on the control channel without waiting for an answer. Any thread."""
        socket = self._connect(CONTROL, slimzmq.DEALER)
        try:
            _send(socket, self._wire.pack(kind, content)[1])
        finally:
            socket.close()  # what was sent still goes out: the sockets linger

    # -- ending -----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Interrupt what it runs, the way its kernelspec says. Any thread."""
        if self._by_message:
            self.notify("interrupt_request", {})
        else:
            signal_group(self.process.pid, SIGINT)

    def kill(self) -> None:
        """End it and all that it started. Any thread."""
        kill_session(self.process.pid)

    def close(self, politely: bool = False) -> None:
        """End it, and remove what it leaves behind."""
        if politely and self.is_ready and self.exit_code() is None:
            self.notify("shutdown_request", {"restart": False})
            end = monotonic() + SHUTDOWN_S
            while self.exit_code() is None and monotonic() < end:
                sleep(LOOK_S)
        self.kill()
        self.process.wait()
        for socket in self._sockets.values():
            socket.set(slimzmq.LINGER, 0)
            socket.close()
        self._sockets = {}
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)

    # -- the connection ---------------------------------------------------------------------------------------

    def _write_connection_file(self, key: bytes) -> str:
        facts: dict[str, Any] = {name + "_port": port for name, port in self._ports.items()}
        facts["transport"] = self.transport
        facts["ip"] = "127.0.0.1" if self.transport == "tcp" else os.path.join(self._folder, "k")
        facts["signature_scheme"] = "hmac-sha256"
        facts["key"] = key.decode("ascii")
        path = os.path.join(self._folder, "connection.json")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(facts, file)
        return path

    def _await_sockets(self, deadline: float, must_stop: Any) -> bool:
        while self.transport != "tcp" and not all(self._path(name) for name in _PORTS[:4]):
            if monotonic() >= deadline or must_stop() or self.exit_code() is not None:
                return False
            sleep(LOOK_S)
        return True

    def _path(self, name: str) -> str:
        """Where a channel's Unix socket is: kernels put different signs before the number; empty if not there yet."""
        for sign in "-:":
            path = "%s/k%s%d" % (self._folder, sign, self._ports[name])
            if os.path.exists(path):
                return path
        return ""

    def _connect(self, name: str, kind: int, identity: bytes = b"") -> Any:
        socket = self.zmq.Socket(self._context, kind)
        socket.set(slimzmq.LINGER, 1000)
        socket.set(slimzmq.RCVHWM, MAX_WAITING_MESSAGES)
        if identity:
            socket.set(slimzmq.ROUTING_ID, identity)
        if kind == slimzmq.SUB:
            socket.set(slimzmq.SUBSCRIBE, b"")
        is_tcp = self.transport == "tcp"
        socket.connect("tcp://127.0.0.1:%d" % self._ports[name] if is_tcp else "ipc://" + self._path(name))
        return socket


def _send(socket: Any, frames: list[bytes]) -> None:
    for frame in frames[:-1]:
        socket.send(frame, slimzmq.SNDMORE)
    socket.send(frames[-1])


def _receive(socket: Any) -> list[bytes]:
    frames = [socket.recv()]
    while socket.get(slimzmq.RCVMORE):
        frames.append(socket.recv())
    return frames


def _private_folder(run_dir: str) -> str:
    """A folder for sockets, short enough for their paths."""
    fits = len(os.fsencode(run_dir)) + len("/jupyter-12345678/k-1") <= MAX_SOCKET_PATH_BYTES
    return tempfile.mkdtemp(prefix="jupyter-", dir=run_dir if fits else None)


def _free_ports() -> dict[str, int]:
    import socket

    held = [socket.socket() for _ in _PORTS]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return {name: int(held[place].getsockname()[1]) for place, name in enumerate(_PORTS)}
    finally:
        for one in held:
            one.close()


def _command(word: str, folder: str) -> str:
    """Return what ``python`` stands for: the interpreter that the kernelspec was installed with."""
    if not os.path.basename(word).startswith("python") or os.sep in word:
        return word
    prefix = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(folder))))
    beside = os.path.join(prefix, "bin", word)
    return beside if os.access(beside, os.X_OK) else sys.executable


def _environ(given: dict[str, str]) -> dict[str, str]:
    environ = dict(os.environ, JPY_PARENT_PID=str(os.getpid()))  # a kernel that has a parent prints no advice
    known = {"${%s}" % name: value for name, value in os.environ.items()}
    environ.update({name: _fill(value, known) for name, value in given.items()})
    return environ


def _fill(text: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text

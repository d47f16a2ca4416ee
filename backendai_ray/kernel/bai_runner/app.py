"""Starts a runner from its command line: bind first, so that the agent can connect while the rest is loaded."""

from __future__ import annotations

import os
import sys

from . import slimzmq
from .server import Server

MAX_SOCKET_PATH_BYTES = 107
USAGE = """usage: main.py --socket PATH [--workdir DIR] [--run-dir DIR] [--lib DIR] [--runtime NAME]
               [--token-file FILE] [--buffer-bytes N] [--spare yes|no]
The token is read from the file, or taken from the environment variable BAI_RUNNER_TOKEN."""
DEFAULTS = {
    "socket": "",
    "workdir": "",
    "run-dir": "",
    "lib": "",
    "runtime": "python",
    "token-file": "",
    "buffer-bytes": str(16 << 20),
    "spare": "no",
}


def main(argv: list[str]) -> None:
    """Run until shut down; exits the process.

    Exit status 2: the command line is wrong or the socket cannot be bound (said on standard error).
    """
    options = parse(argv)
    token = read_token(options["token-file"])
    path = options["socket"]
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        fail("--socket: %r is longer than the %d bytes a Unix socket's path may have" % (path, MAX_SOCKET_PATH_BYTES))
    try:
        zmq = slimzmq.load(options["lib"])
    except ImportError as error:
        fail("--lib: no pyzmq for this Python (%s): %s" % (sys.version.split()[0], error))
    try:
        server = Server(zmq, path)
    except OSError as error:
        fail("--socket: cannot bind %r: %s" % (path, error))
    except Exception as error:
        fail("--socket: cannot bind %r: %r" % (path, error))
    from .runner import Runner

    if options["workdir"]:
        os.chdir(options["workdir"])
    runner = Runner(server, token, options)
    try:
        runner.run()
        _run_exit_handlers()
    finally:
        runner.leave()  # threads that do not end do not keep the process


def parse(argv: list[str]) -> dict[str, str]:
    """Read the options (argparse costs more than the rest of the start)."""
    options = dict(DEFAULTS)
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name[2:] not in options:
            fail("%s: unknown argument\n%s" % (word, USAGE))
        options[name[2:]] = value if equals else next(words, "")
    if not options["socket"]:
        fail("--socket: is missing\n" + USAGE)
    if not options["runtime"]:
        fail("--runtime: must be python, shell or the name of a Jupyter kernel")
    if options["spare"] not in ("yes", "no"):
        fail("--spare: must be yes or no")
    if not options["buffer-bytes"].isdigit():
        fail("--buffer-bytes: must be a number of bytes")
    options["run-dir"] = options["run-dir"] or os.path.dirname(os.path.abspath(options["socket"]))
    return options


def read_token(path: str) -> bytes:
    """Return the shared secret; it does not stay in the environment of user code."""
    token = os.environ.pop("BAI_RUNNER_TOKEN", "").encode()
    if path:
        with open(path, "rb") as file:
            token = file.read().strip()
    if not token:
        fail("no token: give --token-file or BAI_RUNNER_TOKEN")
    return token


def fail(message: str) -> None:
    os.write(2, ("runner: %s\n" % message).encode("utf-8", "backslashreplace"))
    sys.exit(2)


def _run_exit_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()

"""Runs in the official client's own virtual environment: imports the client once, then forks for every command.

Importing takes most of the time of a command. A forked child is what a fresh process is after its imports: it gets its
own environment, working folder, standard streams and exit status, and calls the same entry point.

Each line of standard input is an order: ``{"argv" or "code", "env", "cwd", "stdin", "output", "status"}``; the last
three are paths, of which ``status`` appears when the command has ended.
"""

import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any


def main() -> None:
    import_module("ai.backend.client.cli.session.execute")
    import_module("ai.backend.client.session")
    command_line = import_module("ai.backend.cli.__main__").main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            serve(order, command_line)


def serve(order: dict[str, Any], command_line: Any) -> None:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        os.dup2(os.open(order["stdin"], os.O_RDONLY), 0)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        try:
            if "code" in order:
                exec(compile(order["code"], "<test>", "exec"), {"__name__": "__main__"})
            else:
                sys.argv = ["backend.ai", *order["argv"]]
                command_line()
            status = 0
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:  # noqa: BLE001 - what a fresh process would print before it exits with 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        with open(order["status"] + ".new", "w") as file:
            file.write(str(status))
        os.rename(order["status"] + ".new", order["status"])
        os._exit(status)


if __name__ == "__main__":
    main()

"""``bai shell``: a terminal in a session."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from backendai_ray.cli import options

if TYPE_CHECKING:
    from backendai_ray.client import AsyncTerminal, ClientConfig


@click.command("shell")
@options.session_argument
def shell_command(session: str) -> None:
    """Open a terminal in SESSION; leave it with `exit` or Ctrl-D.

    \b
    bai shell my-session
    """
    with options.make_client() as client:
        session_id = client.sessions.get(session).id
        config = client.config
    sys.exit(open_shell(config, session_id))


def open_shell(config: ClientConfig, session_id: str) -> int:
    """Join this terminal with one in the session until that one ends, and return the exit code."""
    return asyncio.run(_join(config, session_id))


async def _join(config: ClientConfig, session_id: str) -> int:
    from backendai_ray.client import AsyncClient

    client = AsyncClient(config.endpoint, config.access_key, config.secret_key, ca_file=config.ca_file)
    async with client:
        session = await client.sessions.get(session_id)
        size = shutil.get_terminal_size()
        async with session.terminal(rows=size.lines, cols=size.columns) as terminal:
            with _raw_mode(), _keys_and_size(terminal):
                async for piece in terminal:
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
    return 0


@contextmanager
def _raw_mode() -> Iterator[None]:
    """Hand every key on as it is, Ctrl-C included."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _keys_and_size(terminal: AsyncTerminal) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes | tuple[int, int]] = asyncio.Queue()

    def on_key() -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        typed.put_nowait(data or b"\x04")  # an ended input is a Ctrl-D, once
        if not data:
            loop.remove_reader(sys.stdin.fileno())

    def on_resize() -> None:
        size = shutil.get_terminal_size()
        typed.put_nowait((size.lines, size.columns))

    async def hand_on() -> None:
        while True:
            item = await typed.get()
            await (terminal.write(item) if isinstance(item, bytes) else terminal.resize(*item))

    sender = asyncio.create_task(hand_on())
    try:
        loop.add_reader(sys.stdin.fileno(), on_key)
    except PermissionError:  # a plain file, which is always ready
        typed.put_nowait(sys.stdin.buffer.read() + b"\x04")
    loop.add_signal_handler(signal.SIGWINCH, on_resize)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_reader(sys.stdin.fileno())
        sender.cancel()

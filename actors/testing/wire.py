"""Calls between processes that get lost, come twice, late and out of order, and end with who answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from backendai_ray.core.errors import BackendError, InternalError, Unavailable

from .processes import Process

_TIMEOUTS_S = {"heartbeat": 5.0, "wake": 5.0, "inspect": 10.0, "decide": 60.0, "apply": 30.0, "submit": 30.0}
"""As of :mod:`actors.peers`, which needs Ray."""
_TIMEOUT_S = 15.0


@dataclass(slots=True)
class Weather:
    """How bad the wire is; parts of the calls."""

    lost: float = 0.05
    """Never arrive: the caller waits for its timeout."""
    refused: float = 0.03
    """Fail at once: nobody listens."""
    unanswered: float = 0.05
    """Are carried out, and their answer is lost."""
    doubled: float = 0.05
    """Are carried out again some time later."""
    slow: float = 0.05
    """Take seconds instead of milliseconds."""
    slow_s: float = 8.0
    quick_s: float = 0.005


CALM = Weather(lost=0.0, refused=0.0, unanswered=0.0, doubled=0.0, slow=0.0, quick_s=0.002)


@dataclass(slots=True)
class Server:
    """What answers under a name now."""

    process: Process
    actor: Any


class Wire:
    """Carries calls; all that goes wrong is drawn from one seed."""

    def __init__(self, dice: Random, report: Callable[[str], None]) -> None:
        """Make a wire.

        Args:
            dice: Draws what goes wrong.
            report: Is told of exceptions that no caller should ever get.
        """
        self.weather = CALM
        self.cut: set[str] = set()
        """Names that nobody reaches, and that reach nobody."""
        self.calls = 0
        self._dice = dice
        self._report = report
        self._servers: dict[str, Server] = {}

    def listen(self, name: str, process: Process, actor: Any) -> None:
        """Let an actor answer under a name from now on."""
        self._servers[name] = Server(process, actor)

    def server(self, name: str) -> Server | None:
        """Return what answers under a name; ``None`` while nothing does."""
        server = self._servers.get(name)
        return server if server is not None and server.process.is_alive else None

    def peer(self, caller: Process, name: str, *, unavailable: type[Unavailable] = Unavailable) -> Any:
        """Return what a process calls an actor by, as :class:`actors.peers.Peer` is."""
        return _Peer(self, caller, name, unavailable)

    async def call(
        self, caller: Process, name: str, unavailable: type[Unavailable], method: str, args: Any, kwargs: Any
    ) -> Any:
        """Call a method of whoever answers under the name."""
        self.calls += 1
        if not caller.is_alive:
            raise asyncio.CancelledError
        try:
            async with asyncio.timeout(_TIMEOUTS_S.get(method, _TIMEOUT_S)):
                return await self._carry(caller, name, unavailable, method, args, kwargs)
        except TimeoutError:
            raise unavailable(f"{name} did not answer {method} in time", actor=name) from None

    async def _carry(
        self, caller: Process, name: str, unavailable: type[Unavailable], method: str, args: Any, kwargs: Any
    ) -> Any:
        weather, dice = self.weather, self._dice
        await asyncio.sleep(self._delay())
        if dice.random() < weather.lost or self.cut & {name, caller.name}:
            await asyncio.sleep(1e6)
        server = self.server(name)
        if server is None or dice.random() < weather.refused:
            raise unavailable(f"{name} is not reachable", actor=name)
        answer = server.process.spawn(self._answer(server, method, args, kwargs))
        if dice.random() < weather.doubled:
            server.process.spawn(self._answer_again(server, method, args, kwargs))
        try:
            await asyncio.wait([answer])  # never cancels what the other side has begun
        finally:
            answer.add_done_callback(_look_at)
        if answer.cancelled():
            raise unavailable(f"{name} died while it carried out {method}", actor=name)
        await asyncio.sleep(self._delay())
        if dice.random() < weather.unanswered or self.cut & {name, caller.name}:
            raise unavailable(f"the answer of {name} to {method} was lost", actor=name)
        return answer.result()

    async def _answer(self, server: Server, method: str, args: Any, kwargs: Any) -> Any:
        try:
            return await getattr(server.actor, method)(*args, **kwargs)
        except BackendError as exc:
            if isinstance(exc, InternalError):
                self._report(f"{server.process.name}.{method} raised {exc!r}")
            raise
        except Exception as exc:
            self._report(f"{server.process.name}.{method} raised {exc!r}")
            raise InternalError(f"{exc!r}") from exc

    async def _answer_again(self, server: Server, method: str, args: Any, kwargs: Any) -> None:
        await asyncio.sleep(self._delay())
        try:
            await self._answer(server, method, args, kwargs)
        except BackendError:
            pass  # whoever called has had an answer

    def _delay(self) -> float:
        weather = self.weather
        mean = weather.slow_s if self._dice.random() < weather.slow else weather.quick_s
        return self._dice.uniform(0.0, 2.0 * mean)


def _look_at(task: asyncio.Task[Any]) -> None:
    """An exception that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


class _Peer:
    def __init__(self, wire: Wire, caller: Process, name: str, unavailable: type[Unavailable]) -> None:
        self._wire, self._caller, self._called, self._unavailable = wire, caller, name, unavailable

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._wire.call(self._caller, self._called, self._unavailable, method, args, kwargs)

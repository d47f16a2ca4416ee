"""The plain client: the asynchronous one, run in a thread of its own.

Every method here is the asynchronous method of that name, with its signature and documentation; so the two cannot
drift apart. It works in scripts, in Jupyter (where a loop runs already) and from many threads at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from backendai_ray.client._async_client import AsyncClient
from backendai_ray.client._config import ClientConfig
from backendai_ray.client._handle import AsyncSession
from backendai_ray.client._loop_thread import LoopThread
from backendai_ray.client._models import OutputChunk, RunResult
from backendai_ray.client._runs import AsyncRun
from backendai_ray.client._sessions import AsyncSessions
from backendai_ray.client._terminal import AsyncTerminal
from backendai_ray.core.execution import RunStatus

if TYPE_CHECKING:
    import httpx

_A = TypeVar("_A")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Face(Generic[_A]):
    """The plain face of an asynchronous object."""

    def __init__(self, behind: _A, loop: LoopThread) -> None:
        self._behind = behind
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._behind)


def _plain(
    method: Callable[Concatenate[_A, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_Face[_A], _P], _R]:
    @wraps(method)
    def call(self: _Face[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self._loop.call(method(self._behind, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[_A, _P], AsyncIterator[_R]],
) -> Callable[Concatenate[_Face[_A], _P], Iterator[_R]]:
    @wraps(method)
    def call(self: _Face[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]:
        return self._loop.iterate(method(self._behind, *args, **kwargs))

    return call


def _giving_session(
    method: Callable[Concatenate[_A, _P], Coroutine[Any, Any, AsyncSession]],
) -> Callable[Concatenate[_Face[_A], _P], Session]:
    @wraps(method)
    def call(self: _Face[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> Session:
        return Session(self._loop.call(method(self._behind, *args, **kwargs)), self._loop)

    return call


def _giving_run(
    method: Callable[Concatenate[_A, _P], AsyncRun],
) -> Callable[Concatenate[_Face[_A], _P], Run]:
    @wraps(method)
    def call(self: _Face[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> Run:
        return Run(method(self._behind, *args, **kwargs), self._loop)

    return call


def _giving_terminal(
    method: Callable[Concatenate[_A, _P], AsyncTerminal],
) -> Callable[Concatenate[_Face[_A], _P], Terminal]:
    @wraps(method)
    def call(self: _Face[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> Terminal:
        return Terminal(method(self._behind, *args, **kwargs), self._loop)

    return call


class Run(_Face[AsyncRun]):
    """One execution in a session; iterate over it for its output as it comes, in order."""

    interrupt = _plain(AsyncRun.interrupt)

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._behind.run_id

    @property
    def status(self) -> RunStatus:
        """Where it stands, as of the output read so far."""
        return self._behind.status

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` before its end."""
        return self._behind.exit_code

    @property
    def is_finished(self) -> bool:
        """Whether the program has ended."""
        return self._behind.is_finished

    def __iter__(self) -> Iterator[OutputChunk]:
        return self._loop.iterate(aiter(self._behind), close=False)

    def result(self) -> RunResult:
        """Read the rest of the output and return how it went."""
        return self._loop.call(self._behind.result())


class Terminal(_Face[AsyncTerminal]):
    """A shell in a session: write what is typed, iterate over what it shows."""

    write = _plain(AsyncTerminal.write)
    read = _plain(AsyncTerminal.read)
    resize = _plain(AsyncTerminal.resize)
    close = _plain(AsyncTerminal.close)

    def open(self) -> Terminal:
        """Connect and tell the terminal's size."""
        self._loop.call(self._behind.open())
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self._loop.iterate(aiter(self._behind))

    def __enter__(self) -> Terminal:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session(_Face[AsyncSession]):
    """A handle to one session; as a context manager it ends the session with the block."""

    run = _plain(AsyncSession.run)
    stream = _giving_run(AsyncSession.stream)
    batch = _plain(AsyncSession.batch)
    stream_batch = _giving_run(AsyncSession.stream_batch)
    complete = _plain(AsyncSession.complete)
    interrupt = _plain(AsyncSession.interrupt)
    terminal = _giving_terminal(AsyncSession.terminal)
    upload = _plain(AsyncSession.upload)
    download = _plain(AsyncSession.download)
    write = _plain(AsyncSession.write)
    read = _plain(AsyncSession.read)
    ls = _plain(AsyncSession.ls)
    info = _plain(AsyncSession.info)
    stats = _plain(AsyncSession.stats)
    logs = _plain(AsyncSession.logs)
    history = _plain(AsyncSession.history)
    explain = _plain(AsyncSession.explain)
    consolidate = _plain(AsyncSession.consolidate)
    scheduling_history = _plain(AsyncSession.scheduling_history)
    dependency_graph = _plain(AsyncSession.dependency_graph)
    events = _iterating(AsyncSession.events)
    wait = _plain(AsyncSession.wait)
    rename = _plain(AsyncSession.rename)
    restart = _plain(AsyncSession.restart)
    destroy = _plain(AsyncSession.destroy)

    @property
    def id(self) -> str:
        """The session's id, fixed for its whole life."""
        return self._behind.id

    @property
    def name(self) -> str:
        """The session's name."""
        return self._behind.name

    @property
    def created(self) -> bool:
        """Whether the call that made this handle made the session."""
        return self._behind.created

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()


class Sessions(_Face[AsyncSessions]):
    """What a client does with sessions as a whole."""

    create = _giving_session(AsyncSessions.create)
    dry_run = _plain(AsyncSessions.dry_run)
    get = _giving_session(AsyncSessions.get)
    list = _plain(AsyncSessions.list)
    iterate = _iterating(AsyncSessions.iterate)


class Client(_Face[AsyncClient]):
    """Speaks to a cluster from plain code; usable from many threads at once, and in Jupyter.

    Example:
        >>> with Client() as client, client.sessions.create("python") as session:
        ...     print(session.run("print(1 + 1)").stdout)
        2
    """

    agents = _plain(AsyncClient.agents)
    node = _plain(AsyncClient.node)
    events = _iterating(AsyncClient.events)
    groups = _plain(AsyncClient.groups)
    hello = _plain(AsyncClient.hello)
    quotas = _plain(AsyncClient.quotas)
    runtimes = _plain(AsyncClient.runtimes)
    set_quota = _plain(AsyncClient.set_quota)
    remove_quota = _plain(AsyncClient.remove_quota)

    def __init__(
        self,
        endpoint: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        connect_patience_s: float = 2.0,
        retry_patience_s: float = 30.0,
        ca_file: str | None = None,
        wire: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Take the settings as :class:`AsyncClient` does."""
        behind = AsyncClient(
            endpoint,
            access_key,
            secret_key,
            timeout_s=timeout_s,
            connect_patience_s=connect_patience_s,
            retry_patience_s=retry_patience_s,
            ca_file=ca_file,
            wire=wire,
        )
        super().__init__(behind, LoopThread())
        self.sessions = Sessions(behind.sessions, self._loop)

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._behind.config

    def close(self) -> None:
        """Close all connections; sessions stay."""
        self._loop.call(self._behind.close())
        self._loop.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

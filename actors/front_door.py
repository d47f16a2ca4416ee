"""A front door: the HTTP application served by uvicorn inside an actor.

Guarantees: nothing durable is here, so killing a front door costs its clients one broken connection, and a new one on
the same port serves them at once. Any number of them may run side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import structlog
import uvicorn

from actors.contracts import AgentContract, ManagerContract, SokovanContract
from backendai_ray.api import EventSource, Services, create_app
from backendai_ray.bus import Bus, EventStream
from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId

log = structlog.get_logger()

_BIND_WINDOW_S = 10.0
_BIND_RETRY_S = 0.1
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_GRACE_S = 5
_WEBSOCKET_MAX_BYTES = 16 * 2**20


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drop what uvicorn says of a WebSocket that was refused with an HTTP answer, which is no error."""
    return "without completing handshake" not in record.msg


class _Server(uvicorn.Server):
    """A server whose signals are its actor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class FrontDoor:
    """One HTTP server."""

    def __init__(
        self,
        settings: Settings,
        *,
        port: int,
        bus_url: str,
        manager: ManagerContract,
        connect_agent: Callable[[AgentId], AgentContract],
        sokovan: SokovanContract,
        events: EventSource | None = None,
    ) -> None:
        """Set up; :meth:`start` does the work.

        Args:
            settings: The cluster's settings.
            port: Where to listen; 0 takes a free one, which a restarted actor does not get again.
            bus_url: Where the event bus is.
            manager: The Manager.
            connect_agent: Returns the agent of a node.
            sokovan: The scheduler.
            events: Instead of the stream of that bus.
        """
        self._settings = settings
        self._port = port
        self._bus_url = bus_url
        self._manager = manager
        self._connect_agent = connect_agent
        self._sokovan = sokovan
        self._events = events
        self._bus: Bus | None = None
        self._incarnation = uuid4().hex
        self._listening = asyncio.Event()
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns once requests are answered.

        Raises:
            InvalidParameter: the TLS settings are not usable.
            OSError: the port stays taken.
        """
        api = self._settings.api
        if bool(api.tls_cert) != bool(api.tls_key):
            raise InvalidParameter("api.tls_cert and api.tls_key belong together; set both", field="api.tls_key")
        logger = logging.getLogger("uvicorn.error")
        logger.setLevel(logging.WARNING)
        logger.addFilter(_is_worth_logging)
        listener = await _bound(api.host, self._port)
        self._port = listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                create_app(self._services(), self._settings),
                http="httptools",
                ws="websockets-sansio",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
                ws_max_size=_WEBSOCKET_MAX_BYTES,
                ws_per_message_deflate=False,
                ssl_certfile=api.tls_cert,
                ssl_keyfile=api.tls_key,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError("the HTTP server ended while it started")
            await asyncio.sleep(0.005)
        self._listening.set()
        log.info("front_door.listening", address=await self.address())

    async def stop(self) -> None:
        """Stop listening and let running requests end; the rest is cut off after a few seconds."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._listening.clear()
        if self._bus is not None:
            await self._bus.close()

    def _services(self) -> Services:
        events = self._events
        if events is None:
            self._bus = Bus(self._bus_url)
            events = EventStream(self._bus)
        return Services(manager=self._manager, agent=self._connect_agent, sokovan=self._sokovan, events=events)

    async def ping(self) -> str:
        """Return the incarnation."""
        return self._incarnation

    async def address(self) -> str:
        """Return the URL that the front door answers at, once it does."""
        await self._listening.wait()
        scheme = "https" if self._settings.api.tls_cert else "http"
        host = self._settings.api.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"


async def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket; a port that a killed predecessor still holds is waited for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    give_up_at = time.monotonic() + _BIND_WINDOW_S
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            return listener
        except OSError as exc:
            listener.close()
            if exc.errno != errno.EADDRINUSE or time.monotonic() > give_up_at:
                raise
        await asyncio.sleep(_BIND_RETRY_S)

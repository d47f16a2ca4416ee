"""The connection to the event bus: a real Valkey or Redis, in which nothing lives that must survive.

Every call has a timeout, and whatever goes wrong is one error, ``BusUnavailable``; a connection that broke while
nobody used it is replaced without anyone noticing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from backendai_ray.core.errors import BusUnavailable, InvalidParameter

T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
SCHEMES = ("redis", "rediss", "unix")


class Bus:
    """A bus by URL (``redis://``, ``rediss://`` or ``unix://``); connects when first used.

    Args:
        url: Where it is.
        prefix: Begins every key; clusters that share a server need different ones.
        timeout_s: How long one call may take; a blocking read has its waiting time on top.
    """

    def __init__(self, url: str, *, prefix: str = "bai", timeout_s: float = 3.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not (parts.hostname or parts.path):
            raise InvalidParameter(
                "bus.url: give redis://HOST:PORT, rediss://HOST:PORT or unix://PATH", field="bus.url"
            )
        self.prefix = prefix
        self.where = f"the event bus at {parts.hostname}:{parts.port or 6379}" if parts.hostname else "the event bus"
        self._timeout_s = timeout_s
        self.client: redis.Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            # Ours bounds every call; the client's own would cut blocking reads, and it uses asyncio.wait_for, which
            # loses cancellations on Python 3.11.
            socket_timeout=None,
            **({"socket_keepalive": True} if parts.hostname else {}),
            retry=Retry(NoBackoff(), 1),  # a pooled connection may have died unnoticed: try a new one, once
        )

    def key(self, name: str) -> str:
        """Return the key of that name in this cluster."""
        return f"{self.prefix}:{name}"

    async def ask(self, call: Awaitable[T], *, wait_s: float = 0.0) -> T:
        """Await one call to the server.

        Args:
            call: What the client returned.
            wait_s: How long the server itself may wait before it answers.

        Raises:
            BusUnavailable: no answer in time, no connection, or the server refuses to serve.
            ResponseError: the server says that the command is wrong.
        """
        try:
            async with asyncio.timeout(self._timeout_s + wait_s):
                return await call
        except TimeoutError:
            raise BusUnavailable(f"{self.where} does not answer in time") from None
        except AuthenticationError as exc:
            raise BusUnavailable(f"{self.where} refuses the password of the URL: {exc}") from exc
        except (OutOfMemoryError, ReadOnlyError, NoPermissionError) as exc:
            raise BusUnavailable(f"{self.where} takes nothing now: {exc}") from exc
        except ResponseError as exc:
            if str(exc).startswith(_REFUSALS):
                raise BusUnavailable(f"{self.where} takes nothing now: {exc}") from exc
            raise
        except (RedisError, OSError) as exc:
            raise BusUnavailable(f"{self.where} is not reachable: {exc}") from exc

    async def ping(self) -> None:
        """Raises BusUnavailable when the bus does not answer."""
        await self.ask(self.client.ping())

    async def close(self) -> None:
        """Close all connections; may be called twice."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.client.aclose()
        except (TimeoutError, RedisError, OSError):
            pass  # what cannot be closed in good order is gone

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


_REFUSALS = ("MISCONF", "NOAUTH", "WRONGPASS", "BUSY ", "NOREPLICAS")

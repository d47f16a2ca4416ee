"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backendai_ray.client._config import ClientConfig, load_config
from backendai_ray.client._events import read_events
from backendai_ray.client._models import Event, GroupInfo, NodeInfo, QuotaInfo, RuntimeInfo
from backendai_ray.client._sessions import AsyncSessions

if TYPE_CHECKING:
    import httpx


class AsyncClient:
    """Speaks to a cluster from asyncio code; belongs to one event loop.

    Example:
        >>> async with AsyncClient() as client:
        ...     async with await client.sessions.create("python") as session:
        ...         print((await session.run("print(1 + 1)")).stdout)
        2
    """

    sessions: AsyncSessions

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
        """Take the settings from the arguments, else from ``BACKEND_ENDPOINT`` and its kin (``bai env``).

        Args:
            endpoint: URL of the front door.
            access_key: The public half of the keypair.
            secret_key: The secret half.
            timeout_s: Longest silence within a request.
            connect_patience_s: How long a server that never answered may be away.
            retry_patience_s: How long a server that answered before may be away.
            ca_file: PEM file with the certificates to trust.
            wire: What carries the requests, instead of the network; for tests.

        Raises:
            InvalidParameter: a setting is missing or unusable; the message says what to do.
        """
        self.config: ClientConfig = load_config(
            endpoint,
            access_key,
            secret_key,
            timeout_s=timeout_s,
            connect_patience_s=connect_patience_s,
            retry_patience_s=retry_patience_s,
            ca_file=ca_file,
        )
        from backendai_ray.client._transport import Transport  # late: the HTTP library is most of the import time

        self._transport = Transport(self.config, wire=wire)
        self.sessions = AsyncSessions(self._transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; sessions stay."""
        await self._transport.close()

    async def hello(self) -> dict[str, Any]:
        """Return the versions that the server tells."""
        told: dict[str, Any] = await self._transport.json("GET", "/")
        return told

    async def agents(self) -> list[NodeInfo]:
        """Return the nodes and what is free on them."""
        answer = await self._transport.json("GET", "/agents")
        return [NodeInfo.model_validate(one) for one in answer["items"]]

    async def runtimes(self, image: str) -> list[RuntimeInfo]:
        """Return what can run code in an image, the default first.

        Raises:
            ImageNotFound: no node has it.
        """
        answer = await self._transport.json("GET", "/runtimes", params={"image": image})
        return [RuntimeInfo.model_validate(one) for one in answer["items"]]

    async def groups(self) -> list[GroupInfo]:
        """Return the resource groups, how each is scheduled, and what is wrong with that."""
        answer = await self._transport.json("GET", "/scaling-groups")
        return [GroupInfo.model_validate(one) for one in answer["scaling_groups"]]

    async def quotas(self) -> list[QuotaInfo]:
        """Return the quotas with what is taken of them: to administrators all, to others those that bind them."""
        answer = await self._transport.json("GET", "/quotas")
        return [QuotaInfo.model_validate(one) for one in answer["items"]]

    async def set_quota(
        self,
        scope: str,
        name: str,
        *,
        slots: Mapping[str, str | int | float] | None = None,
        sessions: int | None = None,
        pending: int | None = None,
    ) -> QuotaInfo:
        """Replace the limits of a scope; for administrators. What is not given is not limited.

        Args:
            scope: ``keypair``, ``user``, ``project`` or ``domain``.
            name: An access key, a user's name, ``DOMAIN/PROJECT``, or a domain's name.
            slots: What its sessions may hold together, such as ``{"cpu": 32, "mem": "256g"}``.
            sessions: How many may hold resources at the same time.
            pending: How many may wait; one more is refused.
        """
        body = {"slots": dict(slots or {}), "sessions": sessions, "pending": pending}
        answer = await self._transport.json("PUT", _quota_path(scope, name), body=body)
        return QuotaInfo.model_validate(answer)

    async def remove_quota(self, scope: str, name: str) -> None:
        """Remove the limits of a scope; for administrators."""
        await self._transport.json("DELETE", _quota_path(scope, name))

    def events(self, *, session: str = "*", last_event_id: str = "") -> AsyncIterator[Event]:
        """Yield what happens to your sessions (or the one of that name), without end.

        Lost connections are opened again where they broke; ``last_event_id`` does the same across programs.
        """
        params = {"sessionName": session, "scope": "*"}
        return read_events(self._transport, "/events/session", params, last_event_id=last_event_id)


def _quota_path(scope: str, name: str) -> str:
    return f"/quotas/{quote(scope, safe='')}/{quote(name)}"

"""Reaching the peers: routes remembered, looked up again when they are stale, and calls repeated while one restarts.

Every call that goes through here may come twice at the peer, and is made so that this is harmless: runs and
sessions have ids, chunks have offsets.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.contracts import AgentContract, Route
from backendai_ray.api.services import Services
from backendai_ray.core.errors import AgentUnavailable, KernelNotFound, StaleRoute, Unavailable
from backendai_ray.core.ids import AccessKey

T = TypeVar("T")

AWAY_WINDOW_S = 20.0
"""How long a peer that is away (it restarts) is waited for; shorter than a client's usual patience of 30 s."""
STALE_WINDOW_S = 3.0
"""How long Manager and agent may disagree on where a kernel is."""

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_MOST_ROUTES = 10_000


class Reach:
    """Calls the Manager, and the agent of a session."""

    def __init__(
        self, services: Services, *, away_window_s: float = AWAY_WINDOW_S, stale_window_s: float = STALE_WINDOW_S
    ) -> None:
        self._services = services
        self._away_window_s = away_window_s
        self._stale_window_s = stale_window_s
        self._routes: OrderedDict[tuple[str, str], Route] = OrderedDict()

    async def manager(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what the call to the Manager returns; it is made again while the Manager restarts."""
        give_up_at = time.monotonic() + self._away_window_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await call()
            except Unavailable as exc:
                # The classes below it have causes of their own (the store, an agent) and say so best at once.
                if type(exc) is not Unavailable or time.monotonic() + pause_s > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def agent(
        self,
        access_key: AccessKey,
        name: str,
        call: Callable[[AgentContract, Route], Awaitable[T]],
        *,
        repeat: bool = True,
    ) -> T:
        """Return what the call to the session's agent returns.

        Args:
            access_key: The session's owner.
            name: The session's name or id.
            call: Makes the call; it may be made several times.
            repeat: Whether to make it again when it is not known whether it arrived.

        Raises:
            SessionNotFound, SessionNotReady, SessionEnded: there is no kernel to call.
            AgentUnavailable: the agent stayed away.
        """
        began = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            route = await self.route(access_key, name)
            try:
                return await call(self._services.agent(route.agent_id), route)
            except (StaleRoute, KernelNotFound):
                self.forget(access_key, name)
                if time.monotonic() + pause_s > began + self._stale_window_s:
                    raise
            except AgentUnavailable:
                self.forget(access_key, name)
                if not repeat or time.monotonic() + pause_s > began + self._away_window_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def route(self, access_key: AccessKey, name: str) -> Route:
        """Return the way to the session's main kernel, remembered or asked for."""
        route = self._routes.get((access_key, name))
        if route is None:
            route = await self.manager(lambda: self._services.manager.route(access_key, name))
            self.remember(access_key, name, route)
        return route

    def remember(self, access_key: AccessKey, name: str, route: Route) -> None:
        """Take this way from now on; the agent refuses it when it has passed."""
        self._routes[access_key, name] = route
        while len(self._routes) > _MOST_ROUTES:
            self._routes.popitem(last=False)

    def forget(self, access_key: AccessKey, name: str) -> None:
        """Ask again next time."""
        self._routes.pop((access_key, name), None)

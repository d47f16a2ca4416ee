"""Keypairs, remembered for a few seconds so that the Manager is not asked for every request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors.contracts import Keypair
from backendai_ray.core.errors import Unavailable, UnknownAccessKey

_FRESH_S = 5.0
_UNKNOWN_FRESH_S = 1.0
_USABLE_S = 600.0
_MOST = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    keypair: Keypair | None
    at: float


class Keypairs:
    """Looks keypairs up; while the Manager is away, one that was good minutes ago is still good."""

    def __init__(
        self, look_up: Callable[[str], Awaitable[Keypair | None]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up = look_up
        self._now = now
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def active(self, access_key: str) -> Keypair:
        """Return the keypair.

        Raises:
            UnknownAccessKey: there is no active one of that name.
            Unavailable: the Manager cannot be asked, and it was not known before.
        """
        known = self._known.get(access_key)
        if known is None or self._now() - known.at > (_FRESH_S if known.keypair else _UNKNOWN_FRESH_S):
            known = await self._refresh(access_key, known)
        if known.keypair is None or not known.keypair.is_active:
            raise UnknownAccessKey(f"the access key {access_key[:40]!r} is unknown or inactive")
        return known.keypair

    async def _refresh(self, access_key: str, known: _Known | None) -> _Known:
        try:
            keypair = await self._look_up(access_key)
        except Unavailable:
            if known is None or known.keypair is None or self._now() - known.at > _USABLE_S:
                raise
            return known
        fresh = _Known(keypair, self._now())
        self._known[access_key] = fresh
        self._known.move_to_end(access_key)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return fresh

"""Quotas set by administrators, and shown to those whom they bind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from actors.contracts import Keypair, QuotaView
from backendai_ray.core.errors import InvalidParameter, StoreUnavailable
from backendai_ray.core.quotas import Limits, Scope, ScopeKind, scopes_of
from backendai_ray.core.slots import MAX_UNITS
from backendai_ray.store import Batch, QuotaRecord

from .ports import ManagerStore
from .waker import Waker
from .world import World

_NAME = re.compile(r"[^\s/\x00-\x1f]{1,128}")
_MOST_SESSIONS = 10_000_000


class QuotaDesk:
    """Sets quotas; what is set holds from the next placement on, and ends nothing that runs."""

    def __init__(self, world: World, store: ManagerStore, waker: Waker) -> None:
        self._world = world
        self._store = store
        self._waker = waker
        self._one_at_a_time = asyncio.Lock()
        self._is_unsure = False
        """Nobody knows whether the last change was saved: the store is asked before it is believed."""

    async def set(self, scope: Scope, limits: Limits) -> QuotaView:
        """Replace the limits of a scope and have waiting sessions looked at again; no limits: none hold any more.

        The scope need not have a session yet.

        Raises:
            InvalidParameter: the name cannot name such a scope, or a limit is out of range.
            StoreUnavailable: nothing has changed.
        """
        _check(scope, limits)
        async with self._one_at_a_time:  # what holds is what was committed last
            try:
                await self._store.commit(Batch(quotas=(QuotaRecord(scope=scope, limits=limits),)))
            except StoreUnavailable as exc:
                self._is_unsure = self._is_unsure or exc.details.get("outcome") == "unknown"
                raise
            self._waker.wake(self._world.set_limits(scope, limits), "a quota has changed")
        return self._view(scope)

    async def settle_unsure(self) -> None:
        """Let hold what is stored, after a change whose outcome was not known; the sweep calls it.

        Raises:
            StoreUnavailable: it is not known yet; the next sweep asks again.
        """
        if not self._is_unsure:
            return
        async with self._one_at_a_time:
            stored = {quota.scope: quota.limits for quota in await self._store.quotas()}
            self._is_unsure = False
            known = self._world.allowances.limits
            for scope in sorted({*stored, *known}):
                if stored.get(scope, Limits()) != known.get(scope, Limits()):
                    groups = self._world.set_limits(scope, stored.get(scope, Limits()))
                    self._waker.wake(groups, "a quota has changed")

    def all(self) -> Sequence[QuotaView]:
        """Return every quota, with what its scope holds now."""
        return [self._view(scope) for scope in sorted(self._world.allowances.limits)]

    def of(self, keypair: Keypair) -> Sequence[QuotaView]:
        """Return the quotas that bind the sessions of a keypair."""
        scopes = [scope for scope in scopes_of(keypair) if scope in self._world.allowances.limits]
        return [self._view(scope) for scope in scopes]

    def _view(self, scope: Scope) -> QuotaView:
        allowances = self._world.allowances
        limits = allowances.limits.get(scope, Limits())
        return QuotaView(scope=scope, limits=limits, used=allowances.used(scope), waiting=allowances.waiting(scope))


def _check(scope: Scope, limits: Limits) -> None:
    parts = scope.name.split("/") if scope.kind is ScopeKind.PROJECT else [scope.name]
    if len(parts) != (2 if scope.kind is ScopeKind.PROJECT else 1) or not all(map(_NAME.fullmatch, parts)):
        shape = "DOMAIN/PROJECT" if scope.kind is ScopeKind.PROJECT else "one word without a slash"
        raise InvalidParameter(f"name: {scope.name[:80]!r} names no {scope.kind}; give {shape}", field="name")
    for slot, units in limits.slots.items():
        if not 0 <= units < MAX_UNITS:
            raise InvalidParameter(f"slots.{slot}: {units} is out of range", field=f"slots.{slot}")
    for field in ("sessions", "pending"):
        count = getattr(limits, field)
        if count is not None and not 0 <= count <= _MOST_SESSIONS:
            raise InvalidParameter(f"{field}: give a number from 0 to {_MOST_SESSIONS}, not {count}", field=field)

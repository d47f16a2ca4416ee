"""Quotas as the Manager keeps them: the limits, and what every scope holds and has waiting, over all groups."""

from __future__ import annotations

from collections.abc import Iterable

from backendai_ray.core.errors import QuotaExceeded
from backendai_ray.core.ids import KernelId, ResourceGroupName, SessionId
from backendai_ray.core.quotas import Breach, Limits, Quota, Scope, Tally, Use, breach_of, scopes_of
from backendai_ray.core.sessions import Session, SessionSpec
from backendai_ray.core.slots import total


class Allowances:
    """Counts what is held for placements under way as well, so that no two plans share the same rest of a quota."""

    def __init__(self) -> None:
        self.limits: dict[Scope, Limits] = {}
        self._tallies: dict[ResourceGroupName, Tally] = {}
        self._group_of: dict[KernelId, ResourceGroupName] = {}
        self._waiting: dict[Scope, set[SessionId]] = {}

    # ── what is held ──────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, session: Session, kernel_ids: Iterable[KernelId]) -> None:
        """Count kernels of a session; those that count already do not count twice."""
        spec = session.spec
        tally = self._tallies.setdefault(spec.resource_group, Tally())
        for kernel_id in kernel_ids:
            self._group_of[kernel_id] = spec.resource_group
            tally.hold(kernel_id, session.id, spec, spec.slots)

    def free(self, kernel_ids: Iterable[KernelId]) -> None:
        """Count kernels no more."""
        for kernel_id in kernel_ids:
            group = self._group_of.pop(kernel_id, None)
            if group is not None:
                self._tallies[group].free(kernel_id)

    def held(self) -> set[KernelId]:
        """Return the kernels that count."""
        return set(self._group_of)

    def breach(self, spec: SessionSpec) -> Breach | None:
        """Return the quota that a session would exceed if it started."""
        return breach_of(spec, total([spec.slots] * spec.cluster_size), self.limits, self.used)

    def used(self, scope: Scope) -> Use:
        """Return what a scope holds in all groups."""
        return sum((tally.used(scope) for tally in self._tallies.values()), Use())

    # ── what waits ────────────────────────────────────────────────────────────────────────────────────────────────

    def enter_queue(self, spec: SessionSpec) -> None:
        """Count a session that waits, or is about to."""
        for scope in scopes_of(spec):
            self._waiting.setdefault(scope, set()).add(spec.id)

    def leave_queue(self, spec: SessionSpec) -> None:
        """The session does not wait (any more)."""
        for scope in scopes_of(spec):
            waiting = self._waiting.get(scope)
            if waiting is not None:
                waiting.discard(spec.id)
                if not waiting:
                    del self._waiting[scope]

    def waiting(self, scope: Scope) -> int:
        """Return how many sessions of a scope wait."""
        return len(self._waiting.get(scope, ()))

    def check_queue(self, spec: SessionSpec) -> None:
        """Refuse a new session whose owner has as many waiting as he may.

        Raises:
            QuotaExceeded: it says which scope and how many.
        """
        for scope in self.limited(spec):
            limit, waiting = self.limits[scope].pending, self.waiting(scope)
            if limit is not None and waiting >= limit:
                raise QuotaExceeded(
                    f"the quota of {scope} allows {limit} waiting sessions, and {waiting} wait; "
                    "try again when some have started, or cancel some",
                    scope=scope.kind.value,
                    name=scope.name,
                    limit=limit,
                    waiting=waiting,
                )

    # ── the scheduler's view ──────────────────────────────────────────────────────────────────────────────────────

    def quota(self, scope: Scope, group: ResourceGroupName) -> Quota:
        """Return a scope's limits as one resource group sees them; without limits where it has none."""
        others = (tally.used(scope) for name, tally in self._tallies.items() if name != group)
        return Quota(scope, self.limits.get(scope, Limits()), sum(others, Use()))

    def limited(self, spec: SessionSpec) -> tuple[Scope, ...]:
        """Return the scopes of a session that have limits."""
        return tuple(scope for scope in scopes_of(spec) if scope in self.limits)

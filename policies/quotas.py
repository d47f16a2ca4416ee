"""Quotas within one pass: what runs counts, and what the pass has placed so far counts at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from backendai_ray.core.quotas import Quota, Scope, Tally, Use, breach_of, scopes_of
from backendai_ray.core.scheduling import PendingSession, Refusal, RefusalCode, RunningKernel
from backendai_ray.core.slots import ResourceSlots


class QuotaBook:
    """Says which sessions would exceed a quota, and keeps count. Without quotas it costs nothing."""

    def __init__(self, quotas: Iterable[Quota] = (), running: Iterable[RunningKernel] = ()) -> None:
        """Count what runs.

        Args:
            quotas: The limits, with what their scopes hold in other resource groups.
            running: The kernels that hold devices in this one.
        """
        self._limits = {quota.scope: quota.limits for quota in quotas}
        self._elsewhere = {quota.scope: quota.elsewhere for quota in quotas}
        self._tally = Tally(self._limits)
        self._refused: dict[Hashable, str] = {}
        for kernel in running if self._limits else ():
            self._tally.hold(kernel.kernel_id, kernel.session_id, kernel, kernel.allocation.slots())

    def refusal(self, session: PendingSession) -> Refusal | None:
        """Return why a session may not start for a quota; ``None`` when it may."""
        if not self._limits:
            return None
        key = (tuple(scope for scope in scopes_of(session) if scope in self._limits), asked_by(session))
        if not key[0]:
            return None
        # Nothing is freed while a pass goes on: who was refused once is refused later.
        message = self._refused.get(key)
        if message is None:
            breach = breach_of(session, key[1], self._limits, self._used)
            if breach is None:
                return None
            message = self._refused[key] = str(breach)
        return Refusal(session.id, RefusalCode.QUOTA, message)

    def take(self, session: PendingSession) -> None:
        """Count a session that starts."""
        if self._limits:
            for kernel_id in session.kernel_ids:
                self._tally.hold(kernel_id, session.id, session, session.slots)

    def admits_both(self, first: PendingSession, second: PendingSession) -> bool:
        """Return whether the first session could still start, for its quotas, if the second one does."""
        if not self._limits or not set(scopes_of(first)) & set(scopes_of(second)) & self._limits.keys():
            return True
        both = Tally(self._limits)
        for kernel_id in second.kernel_ids:
            both.hold(kernel_id, second.id, second, second.slots)
        return breach_of(first, asked_by(first), self._limits, lambda s: self._used(s) + both.used(s)) is None

    def _used(self, scope: Scope) -> Use:
        return self._elsewhere[scope] + self._tally.used(scope)


def asked_by(session: PendingSession) -> ResourceSlots:
    """Return what all kernels of a session ask for together."""
    size = len(session.kernel_ids)
    if size == 1:
        return session.slots
    return ResourceSlots((slot, units * size) for slot, units in session.slots.items())

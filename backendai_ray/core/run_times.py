"""How long sessions of an owner will probably run: as long, on average, as his last two of that type did.

Two are as good as more, since people do the same thing several times in a row and then another one (D. Tsafrir,
Y. Etsion, D. Feitelson: Backfilling using system-generated predictions rather than user runtime estimates, 2007).
"""

from __future__ import annotations

from typing import Final

from .ids import AccessKey
from .sessions import Reason, Session, SessionType, Status

_LAST: Final = 2
_SAYS_NOTHING: Final = frozenset({Reason.PREEMPTED, Reason.AGENT_LOST, Reason.CONTAINER_LOST})
"""Ends that tell nothing of how long the session would have run."""


class RunTimes:
    """The last run times by owner and type; a bounded number for each."""

    def __init__(self) -> None:
        self._last: dict[tuple[AccessKey, SessionType], tuple[float, ...]] = {}

    def learn(self, session: Session) -> None:
        """Take in a session that has ended; one that never ran, or was cut off, is left out."""
        began, ended = session.started_at, session.terminated_at
        if session.status is not Status.TERMINATED or session.reason in _SAYS_NOTHING or began is None or ended is None:
            return
        key = session.spec.access_key, session.spec.type
        self._last[key] = (*self._last.get(key, ()), max(0.0, ended - began))[-_LAST:]

    def expected_s(self, access_key: AccessKey, kind: SessionType) -> float | None:
        """Return how long the owner's next session of that type will probably run; ``None``: nothing is known."""
        last = self._last.get((access_key, kind))
        return sum(last) / len(last) if last else None

"""Following a session's log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from backendai_ray.core.errors import RequestTimeout

if TYPE_CHECKING:
    from backendai_ray.client import Session, SessionInfo

_POLL_S = 0.5
_OVERLAP = 1000


def follow_log(session: Session) -> SessionInfo:
    """Print a session's log as it grows, until the session has ended, and return how."""
    shown = ""
    while True:
        asked_at = time.monotonic()
        try:
            info = session.wait(timeout=_POLL_S)
        except RequestTimeout:
            info = None
        log = session.logs()
        sys.stdout.write(new_part(shown, log))
        sys.stdout.flush()
        shown = log
        if info is not None:
            return info
        time.sleep(max(0.0, _POLL_S - (time.monotonic() - asked_at)))


def new_part(before: str, now: str) -> str:
    """Return what was added to a log, of which the oldest part may have been dropped meanwhile."""
    if now.startswith(before):
        return now[len(before) :]
    tail = before[-_OVERLAP:]
    at = now.rfind(tail) if tail else -1
    return now if at < 0 else now[at + len(tail) :]

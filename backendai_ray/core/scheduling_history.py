"""What the scheduler told a session over time: each binding reason once, and the placements that came to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .ids import SessionId

KEPT: Final = 64
"""Entries kept of one session; older ones give way."""


class Verdict(StrEnum):
    """What became of a session in a scheduling pass, where it was not placed."""

    REFUSED = "refused"
    """The policy did not place it."""
    REJECTED = "rejected"
    """The policy placed it, and the Manager did not take that, because the world had moved on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingEntry:
    """From ``at`` on the session was told this, until its next entry or its next status."""

    session_id: SessionId
    number: int
    """From 1 for each session; rises by one."""
    verdict: Verdict
    code: str
    """The reason, as a word; see :class:`.scheduling.RefusalCode`."""
    message: str
    at: float
    """Unix seconds."""
    cause: str = ""
    """The scheduling pass."""

"""Moves of sessions that run, proposed so that one that waits can start."""

from __future__ import annotations

from dataclasses import dataclass

from .ids import AgentId, SessionId
from .scheduling import Plan


@dataclass(frozen=True, slots=True)
class Move:
    """One session that goes somewhere else, where it runs again from its beginning."""

    session_id: SessionId
    before: tuple[AgentId, ...]
    after: tuple[AgentId, ...]
    ran_s: float
    """How long it has run; that work is lost."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan that makes room for one session by moves; it does nothing until it is applied."""

    session_id: SessionId
    plan: Plan
    """Empty when nothing is proposed."""
    moves: tuple[Move, ...]
    message: str
    """What the plan does, or why there is none."""

"""Moves of sessions that run, proposed so that one that waits can start."""

from __future__ import annotations

from dataclasses import dataclass

from .ids import AccessKey, AgentId, SessionId
from .scheduling import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    """Somebody asks which moves would let a waiting session start."""

    session_id: SessionId
    max_moves: int = 3
    min_runtime_s: float = 0.0
    """Sessions that were placed more recently are left alone."""
    grace_s: float | None = None
    """How long processes have between the notice and the kill; ``None``: as at any end of a session."""
    owner: AccessKey | None = None
    """Only this owner's sessions may be moved; ``None``: anybody's."""


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
    is_applied: bool = False
    """It was asked to be carried out, and has been committed."""

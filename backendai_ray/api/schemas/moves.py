"""Moves of running sessions that let a waiting one start, as the API takes and shows them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from backendai_ray.api.schemas.sessions import Answer
from backendai_ray.core.proposals import Move, Proposal


class ProposeMoves(BaseModel):
    """The bounds of a proposal, and whether it is carried out."""

    model_config = ConfigDict(extra="forbid")

    apply: bool = Field(False, description="Carry the proposal out; else nothing is done.")
    max_moves: int = Field(3, ge=1, le=8, strict=True, description="So many sessions are moved at most.")
    min_runtime_s: float = Field(
        0, ge=0, le=30 * 86400, description="Sessions that were placed more recently are left alone."
    )
    grace_s: float | None = Field(
        None, ge=0, le=86400, description="How long processes have between the notice and the kill; as usual if absent."
    )


class MoveView(Answer):
    """One session that goes somewhere else, where it runs again from its beginning."""

    session_id: str
    from_agents: list[str]
    to_agents: list[str]
    ran_s: float = Field(description="Seconds that it has run; that work is lost.")

    @classmethod
    def of(cls, move: Move) -> MoveView:
        """Show it."""
        return cls(
            session_id=move.session_id, from_agents=list(move.before), to_agents=list(move.after), ran_s=move.ran_s
        )


class ProposalView(Answer):
    """What was found, or why nothing was."""

    session_id: str
    session_name: str
    message: str
    moves: list[MoveView] = Field(description="Empty: nothing is proposed.")
    agents: list[str] = Field(description="Where the waiting session goes then.")
    applied: bool = Field(description="The sessions named are being moved.")

    @classmethod
    def of(cls, proposal: Proposal, session_name: str) -> ProposalView:
        """Show a proposal."""
        places = [place for place in proposal.plan.nominations if place.session_id == proposal.session_id]
        return cls(
            session_id=proposal.session_id,
            session_name=session_name,
            message=proposal.message,
            moves=[MoveView.of(move) for move in proposal.moves],
            agents=sorted({kernel.agent_id for place in places for kernel in place.kernels}),
            applied=proposal.is_applied,
        )

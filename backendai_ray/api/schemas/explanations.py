"""Why a session waits, where it would go and when, as the API shows it."""

from __future__ import annotations

from pydantic import Field

from backendai_ray.api.schemas.sessions import Answer, iso
from backendai_ray.core.explanations import Explanation, StartEstimate
from backendai_ray.core.scheduling import KernelPlacement, NodeRefusal, Placement
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import Session, Status

PLACEABLE = "placeable"


class NodeRefusalView(Answer):
    """Why one node cannot take the session."""

    agent_id: str
    code: str
    message: str
    shortfall: dict[str, str] = Field(description="What it lacks, by slot; bytes for memory.")

    @classmethod
    def of(cls, node: NodeRefusal) -> NodeRefusalView:
        """Show it."""
        return cls(agent_id=node.agent_id, code=node.code, message=node.message, shortfall=node.shortfall.plain())


class EstimateView(Answer):
    """When the session may start, if nothing new is submitted."""

    at: str | None = Field(description="`null`: not known.")
    not_before: str | None = Field(description="Where it is not known: how far was looked ahead in vain.")
    basis: str = Field(
        description="`now`, `sessions-are-ending`, `start-time`, `time-limits`, `predicted` or `unknown`."
    )
    message: str

    @classmethod
    def of(cls, estimate: StartEstimate) -> EstimateView:
        """Show it."""
        return cls(
            at=iso(estimate.at), not_before=iso(estimate.not_before), basis=estimate.basis, message=estimate.message
        )


class PlacedKernelView(Answer):
    """Where one container goes."""

    kernel_id: str
    agent_id: str
    devices: dict[str, dict[str, int]] = Field(description="Units by slot and device.")

    @classmethod
    def of(cls, kernel: KernelPlacement) -> PlacedKernelView:
        """Show it."""
        slots = sorted({slot for slot, _, _ in kernel.allocation.parts})
        devices = {slot: dict(kernel.allocation.devices(slot)) for slot in slots}
        return cls(kernel_id=kernel.kernel_id, agent_id=kernel.agent_id, devices=devices)


class ExplanationView(Answer):
    """What is decided on a session, and all that a person wants to know about it."""

    session_id: str | None = Field(description="`null`: of a rehearsal, which makes no session.")
    session_name: str
    status: str = Field(description="Of a rehearsal PENDING, or that of the live session that would be reused.")
    reason: str = Field(
        description="The binding reason, as a word: `placeable` when there is room now, of a session that waits one of "
        "the scheduler's reasons, else the reason of its status."
    )
    message: str = Field(description="The same as a sentence.")
    position: int | None = Field(None, description="Its place in the order in which sessions are tried, from 1.")
    waiting: int = Field(0, description="How many sessions wait in its resource group.")
    behind: str | None = Field(None, description="The session whose turn, or whose reservation, keeps it back.")
    closest: NodeRefusalView | None = Field(None, description="The node that lacks least, where room is missing.")
    fragmentation: str = Field(
        "none",
        description="`within-node`: a node has enough in all, but not in pieces of the right size; `across-nodes`: all "
        "nodes together have enough, none of them alone; else `none`.",
    )
    estimate: EstimateView | None = Field(None, description="Of sessions that wait.")
    placement: list[PlacedKernelView] = Field(default_factory=list, description="Where it goes, if there is room.")
    nodes: list[NodeRefusalView] = Field(default_factory=list, description="Every node that cannot take it, with why.")
    policy: str = Field("", description="The scheduling policy of its resource group.")
    warning: str = Field("", description="Why another policy decides in its place; usually empty.")

    @classmethod
    def of_status(cls, session: Session) -> ExplanationView:
        """Show why a session that does not wait is in its status."""
        return cls(
            session_id=session.id,
            session_name=session.spec.name,
            status=session.status,
            reason=session.reason,
            message=session.message,
        )

    @classmethod
    def of(cls, explanation: Explanation, *, session_id: str | None, session_name: str) -> ExplanationView:
        """Show what is decided on a session that waits, or would."""
        outcome = explanation.outcome
        shown = cls(
            session_id=session_id,
            session_name=session_name,
            status=Status.PENDING,
            reason=PLACEABLE,
            message="",
            waiting=explanation.waiting,
            position=explanation.position,
            fragmentation=explanation.fragmentation,
            estimate=EstimateView.of(explanation.estimate),
            policy=explanation.policy,
            warning=explanation.warning,
        )
        if isinstance(outcome, Placement):
            where = ", ".join(sorted({str(kernel.agent_id) for kernel in outcome.kernels}))
            placement = [PlacedKernelView.of(kernel) for kernel in outcome.kernels]
            return shown.model_copy(update={"message": f"the next pass places it on {where}", "placement": placement})
        refusal = {
            "reason": outcome.code.value,
            "message": outcome.message,
            "behind": outcome.behind,
            "closest": NodeRefusalView.of(explanation.closest) if explanation.closest else None,
            "nodes": [NodeRefusalView.of(node) for node in outcome.nodes],
        }
        return shown.model_copy(update=refusal)


class SchedulingEntryView(Answer):
    """What the scheduler told a session from a moment on."""

    number: int = Field(description="From 1; older entries than the last ones are not kept.")
    verdict: str = Field(description="`refused` by the policy, or placed by it and `rejected` by the Manager.")
    code: str = Field(description="The reason, as a word.")
    message: str
    at: str | None
    cause: str = Field(description="The scheduling pass.")

    @classmethod
    def of(cls, entry: SchedulingEntry) -> SchedulingEntryView:
        """Show it."""
        return cls(
            number=entry.number,
            verdict=entry.verdict,
            code=entry.code,
            message=entry.message,
            at=iso(entry.at),
            cause=entry.cause,
        )


class SchedulingHistoryView(Answer):
    """What the scheduler told a session over time."""

    items: list[SchedulingEntryView] = Field(description="Oldest first.")

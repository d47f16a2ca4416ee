"""Moves: which running sessions would have to go elsewhere so that a waiting one can start."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from backendai_ray.api.answers import shown
from backendai_ray.api.context import ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import SessionName, errors
from backendai_ray.api.schemas.moves import ProposalView, ProposeMoves
from backendai_ray.core.errors import SessionNotFound
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.scheduling import Plan
from backendai_ray.core.sessions import Status

router = APIRouter(route_class=ApiRoute, tags=["sessions"])


@router.post(
    "/session/{name}/consolidate", summary="Make room by moves", response_model=ProposalView, responses=errors(404)
)
async def consolidate(context: ContextDep, caller: CallerDep, name: SessionName, body: ProposeMoves) -> Response:
    """Return the fewest moves of running sessions that let a waiting one start, and carry them out if asked to.

    Only sessions that may run again (`requeue`) are moved. Administrators move anybody's, all others their own.
    """
    manager, sokovan = context.services.manager, context.services.sokovan
    session = await context.reach.manager(lambda: manager.session(caller.access_key, name))
    request = MoveRequest(
        session_id=session.id,
        max_moves=body.max_moves,
        min_runtime_s=body.min_runtime_s,
        grace_s=body.grace_s,
        owner=None if caller.keypair.is_admin else caller.access_key,
    )
    message = f"nothing has to be moved: the session is {session.status}"
    proposal = Proposal(session.id, Plan(), (), message)
    if session.status is Status.PENDING:
        group = session.spec.resource_group
        try:
            proposal = await context.reach.manager(lambda: sokovan.propose_moves(group, request, apply=body.apply))
        except SessionNotFound:
            proposal = Proposal(session.id, Plan(), (), "nothing has to be moved: the session waits no more")
    return shown(ProposalView.of(proposal, session.spec.name))

"""One node: how it is built, what it gives out, who holds what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from backendai_ray.api.answers import shown
from backendai_ray.api.context import ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.api.schemas.nodes import NodeDetailView
from backendai_ray.api.usage import usage_of_nodes
from backendai_ray.core.errors import Forbidden
from backendai_ray.core.ids import AgentId

router = APIRouter(route_class=ApiRoute, tags=["cluster"])


@router.get("/agents/{node}", summary="A node", responses=errors(403, 404), response_model=NodeDetailView)
async def agent(
    node: Annotated[str, Path(description="The node's id.", max_length=128)], context: ContextDep, caller: CallerDep
) -> Response:
    """Return how a node is built, its devices and how they are linked, and who holds what; for administrators."""
    if not caller.keypair.is_admin:
        raise Forbidden("only administrators see the nodes")
    detail = await context.reach.manager(lambda: context.services.manager.agent(AgentId(node)))
    usages = await usage_of_nodes(context.services, {detail.view.agent_id: ()}) if detail.view.lost_at is None else {}
    return shown(NodeDetailView.of_detail(detail, usages.get(detail.view.agent_id)))

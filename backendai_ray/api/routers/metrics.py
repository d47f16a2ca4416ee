"""Metrics for Prometheus."""

from __future__ import annotations

import hmac
import ipaddress

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backendai_ray.api.context import ContextDep
from backendai_ray.api.metrics import CONTENT_TYPE, render
from backendai_ray.api.requests import ApiRoute
from backendai_ray.api.routers.names import errors
from backendai_ray.api.usage import reachable, usage_of_nodes
from backendai_ray.config import ApiSettings
from backendai_ray.core.errors import Forbidden, Unauthorized
from backendai_ray.core.sessions import TERMINAL, Status

router = APIRouter(route_class=ApiRoute, tags=["system"])


@router.get("/metrics", summary="Metrics for Prometheus", responses=errors(403))
async def metrics(request: Request, context: ContextDep) -> Response:
    """Return metrics of nodes, containers and devices in Prometheus' format; who may ask says `api.metrics_token`."""
    _let_in(request, context.settings.api)
    manager = context.services.manager
    views = await context.reach.manager(manager.agents)
    alive = [status.value for status in Status if status not in TERMINAL]
    page = await context.reach.manager(lambda: manager.sessions(None, statuses=alive, limit=1, offset=0))
    there = reachable((view.agent_id, view.lost_at is None) for view in views)
    usages = await usage_of_nodes(context.services, there)
    return Response(render(views, usages, page.total), media_type=CONTENT_TYPE)


def _let_in(request: Request, api: ApiSettings) -> None:
    """Check who asks: whoever has the token, or, where none is set, this machine.

    Raises:
        Unauthorized: the token is missing or wrong.
        Forbidden: no token is set, and the caller is elsewhere (or may be, behind a proxy).
    """
    token = api.metrics_token.get_secret_value()
    if token:
        sent = request.headers.get("authorization", "")
        if not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise Unauthorized("Authorization: send `Bearer` and the token of the setting api.metrics_token")
        return
    if api.advertised_url or not _is_here(request.client.host if request.client else ""):
        raise Forbidden("metrics are told to this machine alone; set api.metrics_token to ask from elsewhere")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

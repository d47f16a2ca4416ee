"""Versions, health, and what the official client asks of a manager."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from backendai_ray.api.answers import plain
from backendai_ray.api.context import ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.core.errors import Unavailable
from backendai_ray.core.sessions import TERMINAL, Status

API_VERSION = "v7.20230615"
_READY_TIMEOUT_S = 2.0

router = APIRouter(route_class=ApiRoute)


@router.get("/", summary="Versions", tags=["system"], responses=errors())
async def versions() -> Response:
    """Return the version of the API, which clients negotiate with, and ours; needs no key."""
    return plain({"version": API_VERSION, "manager": version("backendai-ray")})


@router.get("/health/livez", summary="Whether the front door answers", tags=["system"])
async def livez() -> Response:
    """Answer; needs no key."""
    return plain({"status": "ok"})


@router.get("/health/readyz", summary="Whether requests can be served", tags=["system"], responses=errors())
async def readyz(context: ContextDep) -> Response:
    """Answer once the Manager does; needs no key."""
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await context.services.manager.groups()
    except TimeoutError:
        raise Unavailable("the manager does not answer") from None
    return plain({"status": "ok"})


@router.get("/manager/status", summary="The manager's status", tags=["system"], responses=errors())
async def manager_status(context: ContextDep, caller: CallerDep) -> Response:
    """Return the status and how many sessions are alive."""
    alive = [status.value for status in Status if status not in TERMINAL]
    owner = None if caller.keypair.is_admin else caller.access_key
    page = await context.reach.manager(
        lambda: context.services.manager.sessions(owner, statuses=alive, limit=1, offset=0)
    )
    status: dict[str, Any] = {
        "status": "running",
        "active_sessions": page.total,
        "manager": {"version": version("backendai-ray"), "api_version": API_VERSION},
        "nodes": [],
    }
    return plain(status)


@router.get("/manager/announcement", summary="The announcement", tags=["system"], responses=errors())
async def announcement(caller: CallerDep) -> Response:
    """Return the announcement of the day; the official CLI asks for it with every command."""
    del caller
    return plain({"enabled": False, "message": ""})

"""Nodes, resource groups and resource slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from actors.contracts import AgentStatus, AgentView
from backendai_ray.api.answers import plain
from backendai_ray.api.context import ContextDep
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.api.schemas.sessions import iso
from backendai_ray.api.to_core import parse_image
from backendai_ray.core.errors import BackendError, Forbidden, ImageNotFound, Unavailable
from backendai_ray.core.slots import ResourceSlots, SlotKind, slot_kind

router = APIRouter(route_class=ApiRoute, tags=["cluster"])

_MOST_ASKED = 16
"""Nodes that are asked for an image's runtimes, one after the other."""

_SLOT_TYPES = {
    SlotKind.BYTES: "bytes",
    SlotKind.COUNT: "count",
    SlotKind.WHOLE: "count",
    SlotKind.SHARES: "unique",
}


@router.get("/agents", summary="The nodes", responses=errors(403))
async def agents(context: ContextDep, caller: CallerDep) -> Response:
    """Return every node with what it has and what is held there; for administrators."""
    if not caller.keypair.is_admin:
        raise Forbidden("only administrators see the nodes")
    views = await context.reach.manager(context.services.manager.agents)
    return plain({"items": [_shown(view) for view in views], "total": len(views)})


@router.get("/scaling-groups", summary="The resource groups", responses=errors())
async def scaling_groups(
    context: ContextDep,
    caller: CallerDep,
    group: Annotated[str | None, Query(description="A project; all see the same groups for now.")] = None,
) -> Response:
    """Return the resource groups, how each is scheduled, and what is wrong with that."""
    del caller, group
    groups = await context.reach.manager(context.services.manager.groups)
    try:
        stats = await context.services.sokovan.stats()
        away = ""
    except Unavailable as exc:
        stats, away = {}, exc.message
    return plain({"scaling_groups": [_group(name, groups[name], stats.get(name), away) for name in sorted(groups)]})


def _group(name: str, config: Mapping[str, Any], stats: Mapping[str, Any] | None, away: str) -> dict[str, Any]:
    told = stats or {}
    return {
        "name": name,
        "policy": config["policy"],
        "selection": config["selection"],
        "options": config["options"],
        "waiting": told.get("waiting", 0),
        "warning": told.get("warning", "") or told.get("last_error", "") or away,
    }


@router.get("/runtimes", summary="The runtimes of an image", responses=errors(404))
async def runtimes(
    context: ContextDep,
    caller: CallerDep,
    image: Annotated[str, Query(min_length=1, max_length=512, description="As a session would name it.")],
) -> Response:
    """Return what can run code in an image, the default first, as a node says that has the image."""
    del caller
    image = parse_image(image)
    views = await context.reach.manager(context.services.manager.agents)
    problem: BackendError = ImageNotFound(f"no node is here to say what {image!r} has", image=image)
    for view in [view for view in views if view.status is AgentStatus.ALIVE][:_MOST_ASKED]:
        try:
            found = await context.services.agent(view.agent_id).runtimes(image)
        except (ImageNotFound, Unavailable) as error:
            if not isinstance(problem, ImageNotFound) or isinstance(error, ImageNotFound):
                problem = error
            continue
        items = [
            {"name": one.name, "language": one.language, "title": one.title, "isDefault": number == 0}
            for number, one in enumerate(found)
        ]
        return plain({"image": image, "items": items})
    raise problem


@router.get("/config/resource-slots", summary="The resource slots", responses=errors())
async def resource_slots(context: ContextDep, caller: CallerDep) -> Response:
    """Return the slots that the nodes have, and how each is counted."""
    del caller
    views = await context.reach.manager(context.services.manager.agents)
    names = {"cpu", "mem"}.union(*(view.capacity for view in views))
    return plain({name: _SLOT_TYPES[slot_kind(name)] for name in sorted(names)})


def _shown(view: AgentView) -> dict[str, Any]:
    return {
        "id": view.agent_id,
        "status": view.status.value,
        "scalingGroup": view.resource_group,
        "architecture": view.architecture,
        "backend": view.backend,
        "availableSlots": ResourceSlots(view.capacity).plain(),
        "occupiedSlots": ResourceSlots(view.occupied).plain(),
        "schedulable": view.schedulable,
        "message": view.message,
        "firstContact": iso(view.first_contact),
        "lostAt": iso(view.lost_at),
    }

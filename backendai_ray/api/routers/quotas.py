"""Quotas: administrators set them; everybody sees those that bind him."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from backendai_ray.api.answers import nothing, plain, shown
from backendai_ray.api.context import ContextDep
from backendai_ray.api.requests import ApiRoute, Caller, CallerDep
from backendai_ray.api.routers.names import errors
from backendai_ray.api.schemas.quotas import SetQuota, ShownQuota
from backendai_ray.core.errors import Forbidden, InvalidParameter
from backendai_ray.core.quotas import Limits, Scope, ScopeKind

router = APIRouter(route_class=ApiRoute, tags=["quotas"])

Kind = Annotated[str, Path(description="`keypair`, `user`, `project` or `domain`.")]
Name = Annotated[str, Path(description="An access key, a user's name, `DOMAIN/PROJECT`, or a domain's name.")]


@router.get("/quotas", summary="Quotas", responses=errors())
async def quotas(context: ContextDep, caller: CallerDep) -> Response:
    """Return the quotas with what is taken of them: to administrators all, to others those that bind them."""
    whose = None if caller.keypair.is_admin else caller.keypair.access_key
    views = await context.reach.manager(lambda: context.services.manager.quotas(whose))
    return plain({"items": [ShownQuota.of(view).model_dump() for view in views]})


@router.put("/quotas/{kind}/{name:path}", summary="Set a quota", responses=errors(403), response_model=ShownQuota)
async def set_quota(context: ContextDep, caller: CallerDep, kind: Kind, name: Name, body: SetQuota) -> Response:
    """Replace the limits of a scope; for administrators. It ends nothing that runs already."""
    scope, limits = _scope(caller, kind, name), body.to_core()
    if not limits:
        raise InvalidParameter("slots: give slots, sessions or pending; to remove a quota, DELETE it", field="slots")
    view = await context.reach.manager(lambda: context.services.manager.set_quota(scope, limits))
    return shown(ShownQuota.of(view))


@router.delete("/quotas/{kind}/{name:path}", summary="Remove a quota", status_code=204, responses=errors(403))
async def remove_quota(context: ContextDep, caller: CallerDep, kind: Kind, name: Name) -> Response:
    """Remove the limits of a scope; for administrators. Removing what is not there changes nothing."""
    scope = _scope(caller, kind, name)
    await context.reach.manager(lambda: context.services.manager.set_quota(scope, Limits()))
    return nothing()


def _scope(caller: Caller, kind: str, name: str) -> Scope:
    if not caller.keypair.is_admin:
        raise Forbidden("only administrators set quotas")
    if kind not in list(ScopeKind):
        raise InvalidParameter(f"kind: {kind[:40]!r} is none of {', '.join(ScopeKind)}", field="kind")
    return Scope(ScopeKind(kind), name)

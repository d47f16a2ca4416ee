"""Sessions: list, show, end, restart, rename, and what they went through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from backendai_ray.api.answers import nothing, plain, shown
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import ApiRoute, Caller, CallerDep
from backendai_ray.api.routers.names import SessionName, errors
from backendai_ray.api.schemas.explanations import ExplanationView, SchedulingEntryView, SchedulingHistoryView
from backendai_ray.api.schemas.sessions import (
    ChangeView,
    Destroyed,
    History,
    KernelList,
    KernelView,
    Logs,
    SessionList,
    SessionView,
    iso,
)
from backendai_ray.core.errors import Forbidden, InvalidParameter, SessionNotFound
from backendai_ray.core.ids import KernelId, parse_session_name
from backendai_ray.core.sessions import Session, Status

router = APIRouter(route_class=ApiRoute, tags=["sessions"])

MAX_WAIT_S = 30.0


@router.get("/session", summary="List sessions", response_model=SessionList, responses=errors(403))
async def list_sessions(
    context: ContextDep,
    caller: CallerDep,
    status: Annotated[str, Query(description="Statuses, comma-separated; all if absent.", max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
    all_owners: Annotated[bool, Query(alias="all", description="Of every owner; for administrators.")] = False,
) -> Response:
    """Return sessions, newest first."""
    if all_owners and not caller.keypair.is_admin:
        raise Forbidden("all: only administrators see everyone's sessions", field="all")
    owner = None if all_owners else caller.access_key
    statuses = _statuses(status, "status")
    page = await context.reach.manager(
        lambda: context.services.manager.sessions(owner, statuses=statuses, limit=limit, offset=offset)
    )
    now = time.time()
    return shown(SessionList(items=[SessionView.of(session, now) for session in page.sessions], total=page.total))


@router.get("/session/_/logs", summary="Logs of a task", responses=errors(404))
async def task_logs(
    context: ContextDep, caller: CallerDep, task_id: Annotated[str, Query(alias="taskId", max_length=64)]
) -> Response:
    """Return the log of the session with that id, as it is."""
    log = await context.reach.manager(lambda: context.services.manager.logs(caller.access_key, task_id, None))
    return Response(log, media_type="text/plain")


@router.get("/session/{name}", summary="Show a session", response_model=SessionView, responses=errors(404))
async def show(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    wait: Annotated[
        str, Query(max_length=200, description="Answer as soon as it is in one of these statuses, or has ended.")
    ] = "",
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="... or after so many seconds, as it is.")] = 10.0,
) -> Response:
    """Return a live session by its name, or any by its id."""
    wanted = _statuses(wait, "wait")
    session = await _session(context, caller, name)
    if wanted and session.status.value not in wanted and not session.is_terminal:
        session_id = session.id
        session = await context.reach.manager(lambda: context.services.manager.wait(session_id, wanted, wait_s))
    return shown(SessionView.of(session, time.time()))


@router.delete("/session/{name}", summary="End a session", response_model=Destroyed, responses=errors(404, 409))
async def destroy(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    forced: Annotated[bool, Query(description="Kill at once.")] = False,
    recursive: Annotated[bool, Query(description="Also the sessions that depend on it.")] = False,
) -> Response:
    """Begin to end a session; one that has ended already stays as it is."""
    change_id = caller.change_id
    session = await context.reach.manager(
        lambda: context.services.manager.terminate(
            caller.access_key, name, forced=forced, recursive=recursive, request_id=change_id
        )
    )
    context.reach.forget(caller.access_key, name)
    return shown(Destroyed(session_id=session.id, status=session.status, message=session.message))


@router.patch("/session/{name}", summary="Restart a session", status_code=204, responses=errors(404, 409))
async def restart(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Give a running session fresh containers at the same place, with the same files."""
    change_id = caller.change_id
    await context.reach.manager(lambda: context.services.manager.restart(caller.access_key, name, request_id=change_id))
    context.reach.forget(caller.access_key, name)
    return nothing()


@router.post("/session/{name}/rename", summary="Rename a session", status_code=204, responses=errors(404, 409))
async def rename(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    new_name: Annotated[str | None, Query(alias="name", description="The new name.")] = None,
) -> Response:
    """Give a session another name."""
    del request
    if new_name is None:
        raise InvalidParameter("name: give the new name in the query", field="name")
    parse_session_name(new_name)
    change_id = caller.change_id
    await context.reach.manager(
        lambda: context.services.manager.rename(caller.access_key, name, new_name, request_id=change_id)
    )
    context.reach.forget(caller.access_key, name)
    return nothing()


@router.get(
    "/session/{name}/kernels", summary="A session's containers", response_model=KernelList, responses=errors(404)
)
async def kernels(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return the containers of a session, with their devices."""
    session = await _session(context, caller, name)
    return shown(KernelList(items=[KernelView.of(kernel) for kernel in session.kernels]))


@router.get("/session/{name}/logs", summary="A container's log", response_model=Logs, responses=errors(404))
async def logs(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    kernel_id: Annotated[str | None, Query(description="The main container's if absent.", max_length=64)] = None,
) -> Response:
    """Return the (bounded) log of a container, also after its end."""
    kernel = KernelId(kernel_id) if kernel_id else None
    log = await context.reach.manager(lambda: context.services.manager.logs(caller.access_key, name, kernel))
    return plain({"result": {"logs": log.decode(errors="replace")}})


@router.get("/session/{name}/status-history", summary="How it moved", response_model=History, responses=errors(404))
async def status_history(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return when the session entered each status, and every change with its reason."""
    session = await _session(context, caller, name)
    changes = await context.reach.manager(lambda: context.services.manager.history(session.id))
    entered: dict[str, str | None] = {Status.PENDING.value.lower(): iso(session.created_at)}
    for change in changes:
        if change.kernel_id is None:
            entered[change.after.value.lower()] = iso(change.at)
    return shown(History(result=entered, changes=[ChangeView.of(change) for change in changes]))


@router.get("/session/{name}/dependency-graph", summary="What it depends on", responses=errors(404))
async def dependency_graph(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return the session and, nested, the sessions that it depends on."""
    root = await context.reach.manager(lambda: context.services.manager.dependency_graph(caller.access_key, name))
    return plain(_graph_node(root))


@router.get("/session/{name}/explain", summary="Why it waits", response_model=ExplanationView, responses=errors(404))
async def explain(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return why a pending session waits, node by node, and when it may start; of any other, its last reason."""
    session = await _session(context, caller, name)
    if session.status is Status.PENDING:
        group, session_id = session.spec.resource_group, session.id
        try:
            explanation = await context.reach.manager(lambda: context.services.sokovan.explain(group, session_id))
        except SessionNotFound:  # it was placed, or cancelled, just now
            session = await _session(context, caller, session_id)
        else:
            return shown(ExplanationView.of(explanation, session_id=session_id, session_name=session.spec.name))
    return shown(ExplanationView.of_status(session))


@router.get(
    "/session/{name}/scheduling-history",
    summary="What the scheduler told it",
    response_model=SchedulingHistoryView,
    responses=errors(404),
)
async def scheduling_history(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return each reason for which the session waited, from when on, and the placements that were not taken."""
    session = await _session(context, caller, name)
    entries = await context.reach.manager(lambda: context.services.manager.scheduling_history(session.id))
    return shown(SchedulingHistoryView(items=[SchedulingEntryView.of(entry) for entry in entries]))


@router.get("/stream/session/{name}/apps", summary="A session's apps", responses=errors(404), tags=["streams"])
async def apps(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Return the apps that the session serves: none, for now."""
    await _session(context, caller, name)
    return plain([])


def _statuses(text: str, field: str) -> list[str]:
    names = [name.strip() for name in text.upper().split(",") if name.strip()]
    unknown = next((name for name in names if name not in Status.__members__), None)
    if unknown is not None:
        raise InvalidParameter(f"{field}: there is no status {unknown[:40]!r}", field=field)
    return names


async def _session(context: Context, caller: Caller, name: str) -> Session:
    return await context.reach.manager(lambda: context.services.manager.session(caller.access_key, name))


def _graph_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node as the official client reads it: the status with the prefix that it splits off."""
    status = str(node.get("status", ""))
    changed_at = node.get("status_changed")
    if isinstance(changed_at, int | float):
        changed_at = (iso(changed_at) or "").replace("T", " ")
    return {
        **node,
        "status": status if "." in status else f"KernelStatus.{status}",
        "status_changed": str(changed_at),
        "depends_on": [_graph_node(child) for child in node.get("depends_on", ())],
    }

"""Creating sessions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import uuid4

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from actors.contracts import Route, SubmitRequest, Submitted
from backendai_ray.api.answers import shown
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import ApiRoute, Caller, CallerDep, caller_of
from backendai_ray.api.routers.names import errors
from backendai_ray.api.schemas.create import CreatedSession, CreateSession
from backendai_ray.api.schemas.explanations import ExplanationView
from backendai_ray.api.to_core import to_core
from backendai_ray.core.errors import InvalidParameter, SessionNotFound
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.sessions import Session, Status

_WAIT_SLICE_S = 10.0

log = structlog.get_logger()

router = APIRouter(route_class=ApiRoute, tags=["sessions"])


@router.post(
    "/session",
    summary="Create a session",
    status_code=201,
    response_model=CreatedSession,
    responses={
        200: {"model": CreatedSession, "description": "A live session was reused."},
        **errors(403, 404, 409, 412),
    },
)
async def create(request: Request, context: ContextDep, caller: CallerDep, body: CreateSession) -> Response:
    """Create a session and, unless `enqueueOnly`, wait until it runs.

    A caller who hangs up does not take the session back; it can be found by its name.
    """
    if body.owner_access_key:
        caller = caller_of(request, body.owner_access_key)
    submitted = await _submit(context, caller, body)
    session = submitted.session
    log.info("session.submitted", session_id=session.id, received_at=request.scope["state"]["received_at"])
    timed_out = False
    if not body.enqueue_only and session.status is not Status.RUNNING and not session.is_terminal:
        session = await _wait_for_running(request, context, session, body.max_wait_s)
        timed_out = session.status is not Status.RUNNING and not session.is_terminal
    if route := Route.to(session):  # who creates a session runs code in it next
        for name in (session.id, session.spec.name):
            context.reach.remember(session.spec.access_key, name, route)
    answer = CreatedSession(
        session_id=session.id,
        session_name=session.spec.name,
        status="TIMEOUT" if timed_out else session.status.value,
        status_info=session.reason,
        message=session.message,
        service_ports=[],
        created=submitted.created,
    )
    return shown(answer, 201 if submitted.created else 200)


@router.post(
    "/session/_/dry-run",
    summary="Rehearse creating a session",
    response_model=ExplanationView,
    responses=errors(403, 404, 409, 412),
)
async def dry_run(request: Request, context: ContextDep, caller: CallerDep, body: CreateSession) -> Response:
    """Check a create call and return where its session would go, or why it would wait and for how long; make nothing.

    Whatever would be refused is refused with the same error.
    """
    if body.owner_access_key:
        caller = caller_of(request, body.owner_access_key)
    draft = await _draft(context, caller, body)
    rehearsed = await context.reach.manager(lambda: context.services.manager.rehearse(draft))
    if rehearsed.reused is not None:
        return shown(ExplanationView.of_status(rehearsed.reused))
    session, spec = rehearsed.session, draft.spec
    assert session is not None
    explanation = await context.reach.manager(lambda: context.services.sokovan.rehearse(spec.resource_group, session))
    return shown(ExplanationView.of(explanation, session_id=None, session_name=spec.name))


async def _submit(context: Context, caller: Caller, body: CreateSession) -> Submitted:
    submission = await _draft(context, caller, body)
    return await context.reach.manager(lambda: context.services.manager.submit(submission))


async def _draft(context: Context, caller: Caller, body: CreateSession) -> SubmitRequest:
    spec = to_core(
        body,
        session_id=SessionId(str(uuid4())),
        owner=caller.access_key,
        keypair=caller.keypair,
        depends_on=await _dependencies(context, caller.access_key, body.dependencies or ()),
        max_cluster_size=context.settings.manager.max_cluster_size,
        now=time.time(),
    )
    # Without a key of the client's, one of our own: the Manager may die between its commit and its answer.
    return SubmitRequest(
        spec=spec,
        reuse_if_exists=body.reuse_if_exists,
        idempotency_key=caller.idempotency_key or f"once.{spec.id}",
        request_id=caller.request_id,
        starts_at_as_given=body.starts_at or "",
    )


async def _dependencies(context: Context, access_key: AccessKey, names: Sequence[str]) -> tuple[SessionId, ...]:
    found: dict[SessionId, None] = {}
    for name in names:
        try:
            session = await context.reach.manager(
                lambda name=name: context.services.manager.session(access_key, name)  # type: ignore[misc]
            )
        except SessionNotFound:
            raise InvalidParameter(f"dependencies: there is no session {name[:80]!r}", field="dependencies") from None
        found[session.id] = None
    return tuple(found)


async def _wait_for_running(request: Request, context: Context, session: Session, max_wait_s: float) -> Session:
    manager, session_id = context.services.manager, session.id
    give_up_at = time.monotonic() + (max_wait_s or context.settings.api.create_wait_s)
    while True:
        left_s = give_up_at - time.monotonic()
        if left_s <= 0 or await request.is_disconnected():
            return session
        wait_s = min(left_s, _WAIT_SLICE_S)
        session = await context.reach.manager(
            lambda wait_s=wait_s: manager.wait(session_id, [Status.RUNNING.value], wait_s)  # type: ignore[misc]
        )
        if session.status is Status.RUNNING or session.is_terminal:
            return session

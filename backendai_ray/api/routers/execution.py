"""Running code: execute, complete, interrupt."""

from __future__ import annotations

import hashlib
from secrets import token_hex
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backendai_ray.api.answers import nothing, plain
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import ApiRoute, Caller, CallerDep
from backendai_ray.api.routers.names import SessionName, errors
from backendai_ray.api.runs import poll_run, run_answer
from backendai_ray.api.schemas.execute import Complete, CompleteAnswer, Execute, ExecuteAnswer, ExecuteOptions
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.execution import ExecMode
from backendai_ray.core.ids import parse_run_id

router = APIRouter(route_class=ApiRoute, tags=["execution"])


@router.post(
    "/session/{name}",
    summary="Run code, or go on with a run",
    response_model=ExecuteAnswer,
    responses=errors(404, 409, 422, 429),
)
async def execute(
    request: Request, context: ContextDep, caller: CallerDep, name: SessionName, body: Execute
) -> Response:
    """Start, continue or feed a run; answers at its end, or after two seconds with what there is.

    Until `status` is `finished`, call again with mode `continue` (or `input`) and the same `runId`.
    """
    request.scope["state"]["is_poll"] = True
    options = body.options or ExecuteOptions()
    mode = _mode(body, options)
    run_id = _run_id(body, mode, caller)
    if mode is ExecMode.COMPLETE:
        found = await _complete(context, caller, name, body.code or "", options)
        return plain({"result": {"runId": run_id, "console": [], "exitCode": None, "options": {}, **found}})
    output = await poll_run(
        context.reach,
        context.acknowledgements,
        access_key=caller.access_key,
        name=name,
        run_id=run_id,
        mode=mode,
        code=body.code or "",
        options=options.for_runner() if mode is ExecMode.BATCH else {},
        ack=options.ack,
    )
    return plain({"result": run_answer(output)})


@router.post(
    "/session/{name}/complete", summary="Complete code", response_model=CompleteAnswer, responses=errors(404, 409, 422)
)
async def complete(context: ContextDep, caller: CallerDep, name: SessionName, body: Complete) -> Response:
    """Return what could stand at the cursor."""
    return plain({"result": await _complete(context, caller, name, body.code, body.options or ExecuteOptions())})


@router.post("/session/{name}/interrupt", summary="Interrupt", status_code=204, responses=errors(404, 409, 422))
async def interrupt(context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Interrupt what runs, as Ctrl-C does."""
    await context.reach.agent(caller.access_key, name, lambda agent, route: agent.interrupt(route))
    return nothing()


def _mode(body: Execute, options: ExecuteOptions) -> ExecMode:
    if body.mode is None:
        return ExecMode.COMPLETE if options.row is not None or options.col is not None else ExecMode.QUERY
    return ExecMode.INPUT if body.mode == "user-input" else ExecMode(body.mode)


def _run_id(body: Execute, mode: ExecMode, caller: Caller) -> str:
    if body.run_id is not None:
        return parse_run_id(body.run_id)
    if mode in (ExecMode.CONTINUE, ExecMode.INPUT):
        raise InvalidParameter(f"runId: mode {mode.value!r} needs the run's id", field="runId")
    if caller.idempotency_key:
        return "key-" + hashlib.sha256(caller.idempotency_key.encode()).hexdigest()[:32]
    return token_hex(8)


async def _complete(context: Context, caller: Caller, name: str, code: str, options: ExecuteOptions) -> dict[str, Any]:
    told = options.for_runner()
    found = await context.reach.agent(caller.access_key, name, lambda agent, route: agent.complete(route, code, told))
    return {"status": "finished", "completions": list(found)}

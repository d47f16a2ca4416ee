"""The FastAPI application of a front door."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from backendai_ray.api.auth import Signatures
from backendai_ray.api.context import Context
from backendai_ray.api.gate import Gate
from backendai_ray.api.keypairs import Keypairs
from backendai_ray.api.problems import Problem
from backendai_ray.api.reach import Reach
from backendai_ray.api.routers import (
    cluster,
    creation,
    events,
    execution,
    files,
    metrics,
    moves,
    nodes,
    quotas,
    sessions,
    streams,
    system,
    terminals,
)
from backendai_ray.api.runs import Acknowledgements
from backendai_ray.api.services import Services
from backendai_ray.config import Settings
from backendai_ray.core.errors import (
    BackendError,
    BadRequest,
    InternalError,
    InvalidParameter,
    MethodNotAllowed,
    NotFound,
)

_SCHEME = "keypair"


def create_app(services: Services, settings: Settings) -> FastAPI:
    """Return the application.

    Args:
        services: The peers that it talks to.
        settings: The cluster's settings.
    """
    reach = Reach(services)
    app = FastAPI(
        title="backendai-ray",
        version=version("backendai-ray"),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        middleware=[
            Middleware(
                Gate,
                keypairs=Keypairs(lambda access_key: reach.manager(lambda: services.manager.keypair(access_key))),
                signatures=Signatures(clock_skew_s=settings.api.clock_skew_s),
                advertised_url=settings.api.advertised_url,
                max_json_bytes=settings.api.max_json_bytes,
            )
        ],
    )
    app.state.context = Context(services, settings, reach, Acknowledgements())
    app.add_exception_handler(HTTPException, _raise_http_error)
    app.add_exception_handler(RequestValidationError, _raise_invalid)
    # The busiest first: a request is held against one route after the other.
    for router in (
        execution,
        sessions,
        creation,
        files,
        events,
        system,
        cluster,
        nodes,
        quotas,
        moves,
        metrics,
        streams,
        terminals,
    ):
        app.include_router(router.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _raise_http_error(request: Request, error: Exception) -> Response:
    """Turn what the framework raises into an error of ours; the gate renders it."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, BackendError):  # raised while the body was read
        raise error.__cause__
    if isinstance(error.__cause__, Exception):
        raise error.__cause__
    if error.status_code == 404:
        raise NotFound(f"{request.method} {request.url.path}: there is no such path; /openapi.json lists them")
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request)))
        raise MethodNotAllowed(f"{request.method} {request.url.path}: use {allow}", allow=allow)
    if error.status_code < 500:
        raise BadRequest(str(error.detail))
    raise InternalError(str(error.detail))


def _methods(request: Request) -> set[str]:
    """Return the methods that the request's path is served with."""
    return {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }


async def _raise_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):
        raise BadRequest("send the body as JSON, with the content type application/json")
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    if first["type"] == "extra_forbidden":
        raise InvalidParameter(f"{field}: there is no such field", field=field)
    if first["type"] == "missing" and field == "body":
        raise InvalidParameter("body: the call needs a JSON body", field=field)
    raise InvalidParameter(f"{field}: {first['msg']}", field=field)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description="Backend.AI's session API (v7), and more in the same manner.",
            routes=app.routes,
        )
        parts = document.setdefault("components", {})
        parts.setdefault("schemas", {})[Problem.__name__] = Problem.model_json_schema()
        parts["securitySchemes"] = {
            _SCHEME: {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "BackendAI signMethod=HMAC-SHA256, credential=ACCESS_KEY:SIGNATURE",
            }
        }
        document["security"] = [{_SCHEME: []}]
        for operations in document["paths"].values():
            for operation in operations.values():
                answers = operation.get("responses", {})
                framework = answers.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
                if str(framework.get("$ref", "")).endswith("HTTPValidationError"):
                    del answers["422"]  # we answer such errors with 400
        for path in ("/", "/health/livez", "/health/readyz", "/metrics"):
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema

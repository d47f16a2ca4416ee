"""Reading a request: bounded bodies, strict JSON, and who asks."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

import msgspec
from fastapi import Depends, Query
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from actors.contracts import Keypair
from backendai_ray.core.errors import BadRequest, Forbidden, InvalidParameter, TooLarge
from backendai_ray.core.ids import AccessKey

LIMIT_KEY = "backendai.max_json_bytes"
"""Where the gate leaves the limit in the scope."""

_DECODER = msgspec.json.Decoder()
_MAX_IDEMPOTENCY_KEY = 128


class ApiRequest(Request):
    """A request whose body is bounded while it is read, and whose JSON is JSON (no NaN, no bottomless nesting)."""

    async def stream(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        limit = self.scope[LIMIT_KEY]
        received = 0
        async for chunk in super().stream():
            received += len(chunk)
            if received > limit:
                raise TooLarge(f"the body is larger than {limit} bytes", limit_bytes=limit)
            yield chunk

    async def json(self) -> Any:
        try:
            return _DECODER.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise BadRequest(f"the body is no JSON: {exc}") from None
        except RecursionError:
            raise BadRequest("the body is nested too deeply") from None


class ApiRoute(APIRoute):
    """A route whose handler gets an :class:`ApiRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def with_api_request(request: Request) -> Response:
            return await handler(ApiRequest(request.scope, request.receive))

        return with_api_request


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for whom."""

    keypair: Keypair
    access_key: AccessKey
    """The owner of the sessions that are meant; an administrator may name another than himself."""
    request_id: str
    idempotency_key: str
    """Empty when none was sent; else bound to method and path, so that a key is good for one kind of call."""

    @property
    def change_id(self) -> str:
        """Names one change: what repeats it, repeats its name."""
        return self.idempotency_key or f"{self.request_id}.{uuid4().hex[:8]}"


def caller_of(request: Request, owner_access_key: str | None) -> Caller:
    """Return who asks.

    Raises:
        Forbidden: another owner is named by someone who is no administrator.
        InvalidParameter: the idempotency key is too long.
    """
    keypair: Keypair = request.scope["state"]["keypair"]
    owner = owner_access_key or keypair.access_key
    if owner != keypair.access_key and not keypair.is_admin:
        raise Forbidden("owner_access_key: only administrators act for another owner", field="owner_access_key")
    return Caller(
        keypair, AccessKey(owner), request.scope["state"]["request_id"], _idempotency_key(request, keypair.access_key)
    )


def _idempotency_key(request: Request, access_key: str) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > _MAX_IDEMPOTENCY_KEY:
        raise InvalidParameter(
            f"Idempotency-Key: longer than {_MAX_IDEMPOTENCY_KEY} characters", field="Idempotency-Key"
        )
    if not key:
        return ""
    named = "\n".join((access_key, request.method, request.url.path, key))
    return f"{key[:32]}.{hashlib.sha256(named.encode()).hexdigest()[:32]}"


async def _caller(
    request: Request,
    owner_access_key: Annotated[str | None, Query(description="Another owner; for administrators.")] = None,
) -> Caller:
    return caller_of(request, owner_access_key)


CallerDep = Annotated[Caller, Depends(_caller)]

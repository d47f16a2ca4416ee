"""The gate before the routes: request ids, authentication, and errors that nobody else rendered.

Pure ASGI, because the common base class for middleware costs more than a whole ``execute`` may.
"""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from actors.contracts import Keypair
from backendai_ray.api.auth import Signatures, SignedRequest, parse_credential
from backendai_ray.api.keypairs import Keypairs
from backendai_ray.api.problems import problem_body, problem_headers
from backendai_ray.api.requests import LIMIT_KEY
from backendai_ray.core.errors import BackendError, BadRequest, InternalError, NotFound

log = structlog.get_logger()

_OPEN_PATHS = frozenset({"/", "/openapi.json", "/health/livez", "/health/readyz", "/metrics"})
"""Served without a signature; ``/metrics`` looks for itself who asks."""
_VERSION_PREFIX = re.compile(r"/v\d{1,2}(?:\.\d{8})?(?=/|$)")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_CONTENT_TYPE = "application/octet-stream"
_POLICY_VIOLATION = 1008


class Gate:
    """Lets requests in."""

    def __init__(
        self, app: ASGIApp, *, keypairs: Keypairs, signatures: Signatures, advertised_url: str, max_json_bytes: int
    ) -> None:
        self._app = app
        self._keypairs = keypairs
        self._signatures = signatures
        self._advertised_host = urlsplit(advertised_url).netloc
        self._max_json_bytes = max_json_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid4().hex
        with bound_contextvars(request_id=request_id):
            await self._serve(_Exchange(scope, send, request_id), headers, receive)

    async def _serve(self, exchange: _Exchange, headers: dict[str, str], receive: Receive) -> None:
        scope = exchange.scope
        state = scope.setdefault("state", {})
        state["request_id"] = exchange.request_id
        state["received_at"] = time.time()
        scope[LIMIT_KEY] = self._max_json_bytes
        try:
            _strip_version(scope)
            if scope["path"] not in _OPEN_PATHS:
                state["keypair"] = await self._authenticate(scope, headers)
            await self._app(scope, receive, exchange.send)
        except BackendError as exc:
            await exchange.fail(exc)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except Exception:
            log.exception("http.unexpected_error", method=scope.get("method", "WEBSOCKET"), path=scope["path"])
            await exchange.fail(InternalError())
        exchange.log()

    async def _authenticate(self, scope: Scope, headers: dict[str, str]) -> Keypair:
        credential = parse_credential(headers.get("authorization", ""))
        date_text = headers.get("date") or headers.get("x-backendai-date", "")
        date = self._signatures.fresh_date(date_text)
        keypair = await self._keypairs.active(credential.access_key)
        method = scope.get("method", "GET").upper()
        host = headers.get("host", "")
        query = scope["query_string"].decode("latin-1")
        raw_path = scope.get("raw_path") or scope["path"].encode()
        signed = SignedRequest(
            method=method,
            target=raw_path.decode("latin-1") + (f"?{query}" if query else ""),
            hosts=[host, self._advertised_host] if self._advertised_host else [host],
            content_type=headers.get("content-type", _DEFAULT_CONTENT_TYPE).partition(";")[0].strip().lower(),
            version=headers.get("x-backendai-version", ""),
            date_text=date_text,
            authorization=headers["authorization"],
            is_change=method not in _READS or scope["type"] == "websocket",
        )
        self._signatures.verify(signed, date, credential, keypair)
        return keypair


class _Exchange:
    """One request and its answer: knows whether the answer has begun."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.status = 0
        self._send = send
        self._began = time.monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.close" and not self.status:
            # Nobody accepted: the framework's word for "no such path" or "a parameter is wrong".
            is_wrong = message.get("code") == _POLICY_VIOLATION
            await self.fail(BadRequest() if is_wrong else NotFound(f"there is no WebSocket at {self.scope['path']}"))
            return
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        elif message["type"] == "websocket.accept":
            self.status = 101
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def fail(self, error: BackendError) -> None:
        """Answer with the error, or cut the answer off when it has begun."""
        if self.status == 101:
            await self._send({"type": "websocket.close", "code": 1011, "reason": error.code})
            return
        if self.status:
            # Without an end to the answer the server closes the connection, and the client sees that it is short.
            log.warning("http.answer_cut_off", error=error.code, message=error.message)
            return
        prefix = "websocket.http.response" if self.scope["type"] == "websocket" else "http.response"
        if prefix not in ("http.response", *self.scope.get("extensions", ())):
            await self._send({"type": "websocket.close", "code": 3000, "reason": error.code})
            return
        body = problem_body(error, self.request_id)
        headers = [*problem_headers(error), (b"content-length", str(len(body)).encode())]
        await self.send({"type": f"{prefix}.start", "status": error.http_status, "headers": headers})
        await self._send({"type": f"{prefix}.body", "body": body})

    def log(self) -> None:
        scope = self.scope
        is_common = scope.get("method", "GET") in _READS or scope["state"].get("is_poll", False)
        write = log.debug if is_common and self.status < 500 else log.info
        write(
            "http.request",
            method=scope.get("method", "WEBSOCKET"),
            path=scope["path"],
            status=self.status,
            took_ms=round((time.monotonic() - self._began) * 1000, 1),
        )


def _headers(scope: Scope) -> dict[str, str]:
    raw: list[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def _strip_version(scope: MutableMapping[str, Any]) -> None:
    """Serve ``/v7/session`` as ``/session``; what was signed stays in ``raw_path``."""
    match = _VERSION_PREFIX.match(scope["path"])
    if match:
        scope["path"] = scope["path"][match.end() :] or "/"

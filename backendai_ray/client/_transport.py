"""Requests: signed, bounded in time, repeated when the server was away, and failing with the errors of the house.

Every request of ours may be repeated: reads change nothing, changes carry an idempotency key, runs carry their id.
So when the connection breaks, or a part of the system says that it is away, the same call goes out again (with a
fresh signature) until the patience is used up.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from backendai_ray.client._config import ClientConfig
from backendai_ray.client._problems import raise_for_status
from backendai_ray.client._signing import UniqueClock, sign_request
from backendai_ray.core.errors import BackendError, RequestLost, RequestTimeout, Unavailable

_T = TypeVar("_T")
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 2.0
_BINARY = "application/octet-stream"


class Transport:
    """Sends signed requests to one server; belongs to one event loop."""

    def __init__(self, config: ClientConfig, *, wire: httpx.AsyncBaseTransport | None = None) -> None:
        self.config = config
        self._clock = UniqueClock()
        self._has_answered = False
        is_tls = config.endpoint.startswith("https:")
        is_local = urlsplit(config.endpoint).hostname in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.AsyncClient(
            transport=wire,
            verify=_trusted(config.ca_file) if is_tls else False,
            trust_env=not is_local,  # a proxy for the outside world is no way to this machine
            headers={"User-Agent": "backendai-ray"},
            timeout=httpx.Timeout(config.timeout_s, connect=min(5.0, config.timeout_s)),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=32),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: object = None,
        timeout_s: float | None = None,
        repeat_if_lost: bool = True,
    ) -> Any:
        """Send a request and return the decoded answer (``None`` when it is empty).

        Args:
            method: ``GET``, ``POST``, …
            path: Below the endpoint, percent-encoded where needed.
            params: The query.
            body: Sent as JSON, when given.
            timeout_s: Longest silence; default: the client's.
            repeat_if_lost: Whether to send again when it is not known whether the request arrived.

        Raises:
            BackendError: the error that the server named, or :class:`Unavailable` when it cannot be reached.
        """
        headers = _change_headers(method)

        async def send() -> Any:
            request = self._request(method, path, params=params, body=body, headers=headers, timeout_s=timeout_s)
            response = await self._http.send(request)
            raise_for_status(response.status_code, response.headers, response.content)
            if not response.content:
                return None
            try:
                return json.loads(response.content)
            except ValueError:
                raise BackendError(f"{path}: the answer of {self.config.endpoint} is no JSON") from None

        return await self._patiently(send, repeat_if_lost=repeat_if_lost)

    async def upload(self, path: str, open_parts: Callable[[], AbstractContextManager[list[tuple[str, Any]]]]) -> None:
        """Post files as one multipart body; they are opened anew for every attempt."""
        headers = _change_headers("POST")

        async def send() -> None:
            with open_parts() as parts:
                response = await self._http.send(self._request("POST", path, files=parts, headers=headers))
            raise_for_status(response.status_code, response.headers, response.content)

        await self._patiently(send)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Open a response whose body is read piece by piece; a break while reading is :class:`RequestLost`."""

        async def send() -> httpx.Response:
            request = self._request(
                method, path, params=params, body=body, headers=dict(headers or {}), timeout_s=timeout_s
            )
            response = await self._http.send(request, stream=True)
            if response.status_code >= 400:
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
                raise_for_status(response.status_code, response.headers, content)
            return response

        response = await self._patiently(send)
        try:
            yield response
        except httpx.TransportError as exc:
            raise self._explained(exc) from exc
        finally:
            await response.aclose()

    def websocket_request(self, path: str, params: Mapping[str, str | int] | None = None) -> tuple[str, dict[str, str]]:
        """Return the URL and the signed headers of a WebSocket handshake."""
        request = self._request("GET", path, params=params)
        url = str(request.url)
        signed = ("authorization", "date", "x-backendai-version", "content-type")
        return "ws" + url.removeprefix("http"), {name: request.headers[name] for name in signed}

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: object = None,
        files: list[tuple[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Request:
        request = self._http.build_request(
            method,
            self.config.endpoint + path,
            params=params or None,
            json=body,
            files=files,
            headers=headers,
            timeout=httpx.USE_CLIENT_DEFAULT
            if timeout_s is None
            else httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
        )
        content_type = request.headers.setdefault("Content-Type", _BINARY)
        request.headers.update(
            sign_request(
                method=method,
                target=request.url.raw_path.decode("ascii"),
                host=request.headers["Host"],
                content_type=content_type.split(";")[0].strip(),
                date=self._clock(),
                access_key=self.config.access_key,
                secret_key=self.config.secret_key,
            )
        )
        return request

    async def _patiently(self, send: Callable[[], Awaitable[_T]], *, repeat_if_lost: bool = True) -> _T:
        delay_s = _FIRST_DELAY_S
        away_since: float | None = None
        while True:
            try:
                answer = await send()
            except (httpx.TransportError, BackendError) as exc:
                error = self._explained(exc) if isinstance(exc, httpx.TransportError) else exc
                if not isinstance(exc, httpx.TransportError):
                    self._has_answered = True
                pause_s = _pause(error, delay_s)
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                patience_s = self.config.retry_patience_s if self._has_answered else self.config.connect_patience_s
                lost = isinstance(error, RequestLost) and not repeat_if_lost
                if pause_s is None or lost or now + pause_s - away_since > patience_s:
                    raise error from exc.__cause__
                await asyncio.sleep(pause_s)
                delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
            else:
                self._has_answered = True
                return answer

    def _explained(self, exc: httpx.TransportError) -> BackendError:
        endpoint = self.config.endpoint
        if isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout):
            return RequestTimeout(f"{endpoint} did not answer in time", endpoint=endpoint)
        why = str(exc) or type(exc).__name__
        if "CERTIFICATE" in why:
            return BackendError(f"{endpoint} cannot be trusted: {why}; name its CA's file in BACKEND_CA_FILE")
        sentence = f"{endpoint} cannot be reached: {why}. Is the cluster running? (`bai status`, `bai up`)"
        if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return Unavailable(sentence, endpoint=endpoint)
        if isinstance(exc, httpx.NetworkError | httpx.RemoteProtocolError):
            return RequestLost(sentence, endpoint=endpoint)
        return BackendError(f"{endpoint}: {why}")


def _pause(error: BackendError, delay_s: float) -> float | None:
    """Return how long to wait before the next attempt; ``None``: there is none."""
    told = error.details.get("retry_after_s")
    if isinstance(told, float):
        return max(told, delay_s)
    if isinstance(error, Unavailable):
        return delay_s * random.uniform(0.8, 1.2)
    return None


def _change_headers(method: str) -> dict[str, str]:
    return {} if method == "GET" else {"Idempotency-Key": uuid4().hex}


def _trusted(ca_file: str | None) -> Any:
    import ssl

    return ssl.create_default_context(cafile=ca_file) if ca_file else True

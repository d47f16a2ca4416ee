"""The one shape of every error: RFC 9457 problem details, with the fields that Backend.AI's clients read.

``type``, ``title`` and ``msg`` (and ``data`` for some types) are what the official client prints; ``code`` and
``details`` are what ours rebuilds the exception from; ``request_id`` finds the log lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel, Field

from backendai_ray.core.errors import (
    BackendError,
    InternalError,
    InvalidParameter,
    KernelBusy,
    NameInUse,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "https://api.backend.ai/probs/"
_OFFICIAL_NAMES: Mapping[type[BackendError], str] = {
    InvalidParameter: "invalid-api-params",
    NameInUse: "session-already-exists",
}


class Problem(BaseModel):
    """An error."""

    type: str = Field(description="Names the kind of error, as a URI.")
    title: str = Field(description="The kind of error, in a sentence.")
    status: int = Field(description="The HTTP status.")
    msg: str = Field(description="What happened, and what to do next.")
    detail: str = Field(description="The same as `msg`, under its RFC 9457 name.")
    code: str = Field(description="The stable machine code of the error.")
    details: dict[str, Any] = Field(description="Facts beside the message, such as `field`.")
    data: dict[str, Any] = Field(default_factory=dict, description="What the official client prints for some types.")
    request_id: str = Field(description="The request's id, as it stands in the log.")


def problem_body(error: BackendError, request_id: str) -> bytes:
    """Return the JSON of an error; of an unexpected one nothing but its request id."""
    message, details = error.message, error.details
    if type(error) is InternalError or type(error) is BackendError:
        message, details = f"{InternalError.title} (request {request_id})", {}
    data = {"existingSessionId": details.get("session_id")} if isinstance(error, NameInUse) else {}
    return msgspec.json.encode(
        {
            "type": _TYPE_PREFIX + _OFFICIAL_NAMES.get(type(error), error.code),
            "title": error.title,
            "status": error.http_status,
            "msg": message,
            "detail": message,
            "code": error.code,
            "details": details,
            "data": data,
            "request_id": request_id,
        },
        enc_hook=str,
    )


def problem_headers(error: BackendError) -> list[tuple[bytes, bytes]]:
    """Return the headers that go with an error."""
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if isinstance(error, Unavailable | KernelBusy):
        headers.append((b"retry-after", b"1"))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"BackendAI"))
    allow = error.details.get("allow")
    if isinstance(allow, str):
        headers.append((b"allow", allow.encode()))
    return headers

"""Errors: what an answer says went wrong, as the class that its code names."""

from __future__ import annotations

import json
from collections.abc import Mapping

from backendai_ray.core.errors import (
    BackendError,
    BadRequest,
    Conflict,
    Forbidden,
    KernelBusy,
    NotFound,
    RequestTimeout,
    TooLarge,
    Unauthorized,
    Unavailable,
    error_from_code,
)

_BY_STATUS: Mapping[int, type[BackendError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: KernelBusy,
    502: Unavailable,
    503: Unavailable,
    504: RequestTimeout,
}


def raise_for_status(status: int, headers: Mapping[str, str], content: bytes) -> None:
    """Raise the error that an answer tells, with the class that its ``code`` names.

    Raises:
        BackendError: the status is 400 or above.
    """
    if status < 400:
        return
    try:
        told = json.loads(content)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {}
    details = told.get("details")
    details = {k: v for k, v in details.items() if k not in ("self", "message")} if isinstance(details, dict) else {}
    request_id = told.get("request_id") or headers.get("x-request-id")
    if request_id:
        details["request_id"] = request_id
    if headers.get("retry-after", "").isdigit():
        details["retry_after_s"] = float(headers["retry-after"])
    message = str(told.get("msg") or told.get("detail") or told.get("title") or f"The server answered {status}.")
    code = told.get("code")
    if isinstance(code, str) and code:
        raise error_from_code(code, message, details)
    raise _BY_STATUS.get(status, BackendError)(message, **details)

"""Path parameters and answers that many routes share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Path

from backendai_ray.api.problems import Problem
from backendai_ray.core.errors import SessionNotFound

_NAME_OR_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TITLES = {
    400: "The request cannot be understood; `msg` names the field.",
    401: "The request is not signed by a known key.",
    403: "You may not do this.",
    404: "There is no such thing.",
    409: "This does not fit the present state.",
    412: "The request can never be satisfied here.",
    413: "The body is larger than the limit.",
    422: "The session's image cannot do this.",
    429: "The session's kernel has too many runs waiting.",
    500: "An unexpected error; its request id is in the log.",
    503: "A part of the system is not reachable now; try again.",
    504: "This took longer than the time given.",
}
_ALWAYS = (400, 401, 413, 500, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route for the OpenAPI document."""
    return {
        status: {
            "description": _TITLES[status],
            "content": {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
        for status in sorted({*_ALWAYS, *statuses})
    }


async def _session_name(
    name: Annotated[str, Path(description="The session's name, its id, or the id's beginning.")],
) -> str:
    if not _NAME_OR_ID.fullmatch(name):
        raise SessionNotFound(f"{name[:80]!r} names no session")
    return name


SessionName = Annotated[str, Depends(_session_name)]

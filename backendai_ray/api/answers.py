"""Rendering answers."""

from __future__ import annotations

import msgspec
from pydantic import BaseModel
from starlette.responses import Response

_ENCODER = msgspec.json.Encoder()


def shown(model: BaseModel, status: int = 200) -> Response:
    """Return a model as JSON under its official field names."""
    return Response(model.model_dump_json(by_alias=True), status, media_type="application/json")


def plain(data: object, status: int = 200) -> Response:
    """Return plain data as JSON, fast."""
    return Response(_ENCODER.encode(data), status, media_type="application/json")


def encode(data: object) -> bytes:
    """Return plain data as JSON text."""
    return _ENCODER.encode(data)


def nothing() -> Response:
    """Return an empty success."""
    return Response(status_code=204)

"""The HTTP front door: the official session API of Backend.AI, and what we offer beside it."""

from __future__ import annotations

from backendai_ray.api.app import create_app
from backendai_ray.api.services import ChangeStream, Services, StreamedChange

__all__ = ["ChangeStream", "Services", "StreamedChange", "create_app"]

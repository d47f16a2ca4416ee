"""The HTTP front door: the official session API of Backend.AI, and what we offer beside it."""

from __future__ import annotations

from backendai_ray.api.app import create_app
from backendai_ray.api.services import EventSource, Services

__all__ = ["EventSource", "Services", "create_app"]

"""Backend.AI rebuilt as long-lived Ray actors: ``from backendai_ray import Client``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backendai_ray.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    # Late, so that the actors and the runner, which import this package too, do not load an HTTP client.
    if name in __all__:
        import backendai_ray.client

        return getattr(backendai_ray.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Pulling an image: whose password is shown to which registry, how far it is, and what a failure means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from docker.api.client import APIClient
from docker.errors import APIError

from backendai_ray.config import RegistryLogin
from backendai_ray.core.errors import BackendError, EngineUnavailable, ImageNotFound

DEFAULT_REGISTRY: Final = "docker.io"
TELL_INTERVAL_S: Final = 1.0
_MIB: Final = 2**20
_NOT_FOR_US: Final = ("not found", "manifest unknown", "does not exist", "repository name", "invalid reference")
_NOT_ALLOWED: Final = ("unauthorized", "denied", "authentication required", "no basic auth")


def pull(api: APIClient, reference: str, logins: Mapping[str, RegistryLogin], tell: Callable[[str], None]) -> None:
    """Pull an image; returns when it is there.

    Args:
        api: The engine.
        reference: ``[registry/]name[:tag]`` or ``…@digest``.
        logins: By registry host, with the port if it has one.
        tell: Hears how far it is, once a second at most.

    Raises:
        ImageNotFound: there is none of that name, or the registry does not let us have it.
        EngineUnavailable: it could not be got now.
    """
    login = logins.get(registry_of(reference))
    auth = {"username": login.username, "password": login.password.get_secret_value()} if login else None
    name, tag = _split(reference)
    progress = PullProgress(reference)
    told_at = 0.0
    try:
        for event in api.pull(name, tag=tag, stream=True, decode=True, auth_config=auth):
            if said := event.get("error"):
                raise _failure(reference, str(said), has_login=login is not None)
            progress.take(event)
            if time.monotonic() - told_at >= TELL_INTERVAL_S:
                told_at = time.monotonic()
                tell(progress.sentence())
    except APIError as error:
        raise _failure(reference, str(error.explanation or error), has_login=login is not None) from error


def registry_of(reference: str) -> str:
    """Return the host, with the port if it has one, that an image comes from."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DEFAULT_REGISTRY


class PullProgress:
    """Adds up what the engine says of the layers."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._layers: dict[str, tuple[int, int]] = {}
        self._steps: dict[str, str] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of the engine's stream in."""
        layer, status = event.get("id"), str(event.get("status", ""))
        if not layer or status.startswith("Pulling from"):
            return
        self._steps[layer] = status
        detail = event.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif layer in self._layers and status in ("Download complete", "Pull complete"):
            self._layers[layer] = (self._layers[layer][1],) * 2

    def sentence(self) -> str:
        """Return how far it is, for people."""
        total = sum(total for _, total in self._layers.values())
        if not total:
            return f"getting the image {self._reference}"
        done = sum(current for current, _ in self._layers.values())
        complete = sum(step in ("Pull complete", "Already exists") for step in self._steps.values())
        return (
            f"getting the image {self._reference}: {done // _MIB} of {total // _MIB} MiB, "
            f"{complete} of {len(self._steps)} layers are there"
        )


def _split(reference: str) -> tuple[str, str | None]:
    if "@" in reference:
        return reference, None
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "latest")


def _failure(reference: str, said: str, *, has_login: bool) -> BackendError:
    line = next(iter(said.strip().splitlines()), "")[:200]
    lower = said.lower()
    if any(word in lower for word in _NOT_ALLOWED):
        registry = registry_of(reference)
        hint = (
            f"the login in agent.registries for {registry} is refused"
            if has_login
            else f"it may not exist, or {registry} wants a login (agent.registries)"
        )
        return ImageNotFound(f"{reference} cannot be pulled: {hint}: {line}", image=reference)
    if any(word in lower for word in _NOT_FOR_US):
        return ImageNotFound(
            f"there is no image {reference!r} here, nor where it would come from: {line}", image=reference
        )
    return EngineUnavailable(f"the image {reference} cannot be pulled now: {line}", image=reference)

"""Where the server is and who we are: from arguments, else from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from backendai_ray.core.errors import InvalidParameter

_HINT = 'start a cluster with `bai up` and run `eval "$(bai env)"`, or set them yourself'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The settings of a client."""

    endpoint: str
    """URL of the front door, such as ``http://127.0.0.1:8090``."""
    access_key: str
    """The public half of the keypair."""
    secret_key: str = field(repr=False)
    """The secret half."""
    timeout_s: float = 30.0
    """Longest silence within a request before it is given up."""
    connect_patience_s: float = 2.0
    """How long a server that never answered this client may be away before it is an error."""
    retry_patience_s: float = 30.0
    """How long a server that answered before may be away (it restarts) before it is an error."""
    ca_file: str | None = None
    """PEM file with the certificates to trust, for TLS with a CA of one's own."""


def load_config(
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    *,
    timeout_s: float = 30.0,
    connect_patience_s: float = 2.0,
    retry_patience_s: float = 30.0,
    ca_file: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> ClientConfig:
    """Return the settings, arguments before ``BACKEND_ENDPOINT``, ``BACKEND_ACCESS_KEY``, ``BACKEND_SECRET_KEY``.

    ``BACKEND_CA_FILE`` stands in for ``ca_file``.

    Raises:
        InvalidParameter: a setting is missing, or unusable.
    """
    env = os.environ if environ is None else environ
    if timeout_s <= 0 or connect_patience_s < 0 or retry_patience_s < 0:
        raise InvalidParameter("timeout_s must be above 0 and a patience not below", field="timeout_s")
    found = {
        "BACKEND_ENDPOINT": endpoint or env.get("BACKEND_ENDPOINT", "").split(",")[0].strip(),
        "BACKEND_ACCESS_KEY": access_key or env.get("BACKEND_ACCESS_KEY", "").strip(),
        "BACKEND_SECRET_KEY": secret_key or env.get("BACKEND_SECRET_KEY", "").strip(),
    }
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise InvalidParameter(f"{', '.join(missing)} not set: {_HINT}", field=missing[0])
    url = found["BACKEND_ENDPOINT"].rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise InvalidParameter(
            f"BACKEND_ENDPOINT: {url!r} is no URL; give one such as http://127.0.0.1:8090", field="BACKEND_ENDPOINT"
        )
    return ClientConfig(
        endpoint=url,
        access_key=found["BACKEND_ACCESS_KEY"],
        secret_key=found["BACKEND_SECRET_KEY"],
        timeout_s=timeout_s,
        connect_patience_s=connect_patience_s,
        retry_patience_s=retry_patience_s,
        ca_file=ca_file or env.get("BACKEND_CA_FILE") or None,
    )

"""Signed requests, written from the description of the scheme and not from our code."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import httpx

from actors.contracts import Keypair

VERSION = "v7.20230615"


class SignedAuth(httpx.Auth):
    """Signs each request anew."""

    def __init__(self, keypair: Keypair, *, date: datetime | None = None) -> None:
        self._keypair = keypair
        self._date = date

    def auth_flow(self, request: httpx.Request) -> Any:
        content_type = request.headers.get("content-type", "application/octet-stream").split(";")[0]
        request.headers.update(
            signed_headers(
                self._keypair,
                method=request.method,
                target=request.url.raw_path.decode(),
                host=request.headers["host"],
                content_type=content_type,
                date=self._date,
            )
        )
        yield request


def signed_headers(
    keypair: Keypair,
    *,
    method: str,
    target: str,
    host: str,
    content_type: str = "application/octet-stream",
    date: datetime | None = None,
) -> dict[str, str]:
    """Return the headers of a signed request."""
    moment = date or datetime.now(UTC)
    text = (
        f"{method}\n{target}\n{moment.isoformat()}\nhost:{host}\ncontent-type:{content_type}\n"
        f"x-backendai-version:{VERSION}\n{hashlib.sha256(b'').hexdigest()}"
    )
    key = hmac.new(keypair.secret_key.encode(), moment.strftime("%Y%m%d").encode(), "sha256").digest()
    key = hmac.new(key, host.encode(), "sha256").digest()
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return {
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={keypair.access_key}:{signature}",
        "Date": moment.isoformat(),
        "X-BackendAI-Version": VERSION,
    }

"""Signing of requests with a keypair, as Backend.AI's API v7 wants it.

The body is not part of the signature; the date is, so every request is signed anew, and its microseconds keep two
requests of one client apart (a server may refuse a signature that it has seen).
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

API_VERSION = "v7.20230615"
_EMPTY_BODY_HASH = hashlib.sha256(b"").hexdigest()


class UniqueClock:
    """Gives the present moment in UTC, but never the same microsecond twice."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._last = datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            moment = self._now()
            if moment <= self._last:
                moment = self._last + timedelta(microseconds=1)
            self._last = moment
            return moment


def sign_request(
    *,
    method: str,
    target: str,
    host: str,
    content_type: str,
    date: datetime,
    access_key: str,
    secret_key: str,
) -> dict[str, str]:
    """Return the headers that authenticate a request.

    Args:
        method: ``GET``, ``POST``, …
        target: The path with its query, exactly as it is sent.
        host: The ``Host`` header exactly as it is sent (``name`` or ``name:port``).
        content_type: The body's type without parameters; it is signed in lower case.
        date: An aware UTC date.
        access_key: The public half of the keypair.
        secret_key: The other half.
    """
    date_text = date.isoformat()
    string_to_sign = "\n".join(
        (
            method.upper(),
            target,
            date_text,
            f"host:{host}",
            f"content-type:{content_type.lower()}",
            f"x-backendai-version:{API_VERSION}",
            _EMPTY_BODY_HASH,
        )
    )
    day_key = _hmac(secret_key.encode(), date.strftime("%Y%m%d")).digest()
    signing_key = _hmac(day_key, host).digest()
    signature = _hmac(signing_key, string_to_sign).hexdigest()
    return {
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={access_key}:{signature}",
        "Date": date_text,
        "X-BackendAI-Version": API_VERSION,
    }


def _hmac(key: bytes, text: str) -> hmac.HMAC:
    return hmac.new(key, text.encode(), hashlib.sha256)

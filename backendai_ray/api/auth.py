"""Who sends a request: HMAC signatures by keypairs, as Backend.AI's API v7 has them.

The signature covers the method, the path with its query, the date, the host, the content type and the API version,
but not the body: whoever can change bytes on the way can change a body. TLS is what protects it.

The scheme has no nonce. A signature is therefore good for as long as its date is near the server's clock. Reads may
repeat within that time. A change (and a WebSocket, over which changes are sent) is taken once only per signature:
clients sign with microseconds, so two requests of one client never have the same one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from actors.contracts import Keypair
from backendai_ray.core.errors import AuthorizationMissing, InvalidSignature, StaleSignature

_CREDENTIAL = re.compile(
    r"BackendAI\s+signMethod=([A-Za-z0-9-]{1,32})\s*,\s*credential=([^\s:,]{1,128}):([0-9A-Fa-f]{1,256})\s*"
)
_SIGN_METHOD = "HMAC-SHA256"
_EMPTY_BODY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """The parts of a request that a signature is about, as they came."""

    method: str
    target: str
    """Path with query."""
    hosts: Sequence[str]
    """The host that the client may have meant: the Host header's, and the advertised one."""
    content_type: str
    """Without parameters, in lower case."""
    version: str
    date_text: str
    authorization: str
    is_change: bool


@dataclass(frozen=True, slots=True)
class Credential:
    """What an Authorization header says."""

    access_key: str
    signature: str


def parse_credential(authorization: str) -> Credential:
    """Return the access key and signature of an Authorization header.

    Raises:
        AuthorizationMissing: it is not there, of another scheme, or of another signing method.
    """
    match = _CREDENTIAL.fullmatch(authorization)
    if match is None:
        raise AuthorizationMissing(
            "the request needs 'Authorization: BackendAI signMethod=HMAC-SHA256, credential=ACCESS_KEY:SIGNATURE'"
        )
    sign_method, access_key, signature = match.groups()
    if sign_method.upper() != _SIGN_METHOD:
        raise AuthorizationMissing(f"signMethod {sign_method} is not supported; use {_SIGN_METHOD}")
    return Credential(access_key, signature.lower())


def parse_date(text: str) -> datetime:
    """Return the aware date of a Date (or X-BackendAI-Date) header: ISO 8601, or as HTTP has it.

    Raises:
        AuthorizationMissing: there is none, or it cannot be read.
    """
    if not text:
        raise AuthorizationMissing("the request needs a Date header")
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            raise AuthorizationMissing(f"the date {text[:40]!r} cannot be read; send ISO 8601 in UTC") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def sign(request: SignedRequest, date: datetime, host: str, secret_key: str) -> str:
    """Return the signature that the request must have if it was meant for ``host``."""
    text = "\n".join(
        (
            request.method,
            request.target,
            request.date_text,
            f"host:{host}",
            f"content-type:{request.content_type}",
            f"x-backendai-version:{request.version}",
            _EMPTY_BODY_SHA256,
        )
    )
    day_key = hmac.digest(secret_key.encode(), date.strftime("%Y%m%d").encode(), "sha256")
    key = hmac.digest(day_key, host.encode(), "sha256")
    return hmac.digest(key, text.encode(errors="surrogateescape"), "sha256").hex()


class Signatures:
    """Checks signatures, and remembers those of changes for as long as they would be good."""

    def __init__(self, *, clock_skew_s: float, remembered: int = 500_000, now: Callable[[], float] = time.time) -> None:
        """Set up.

        Args:
            clock_skew_s: How far a date may be from the server's clock.
            remembered: Most signatures remembered; beyond, older changes are refused rather than taken twice.
            now: The clock, in Unix seconds.
        """
        self._skew_s = clock_skew_s
        self._remembered = remembered
        self._now = now
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._forgotten_until = float("-inf")

    def fresh_date(self, text: str) -> datetime:
        """Return a request's date.

        Raises:
            StaleSignature: it is too far from the server's clock.
        """
        date = parse_date(text)
        off_by_s = abs(date.timestamp() - self._now())
        if off_by_s > self._skew_s:
            raise StaleSignature(
                f"the request's date is {off_by_s:.0f} s off the server's clock; {self._skew_s:.0f} s are allowed. "
                "Set this machine's clock",
                off_by_s=round(off_by_s),
            )
        return date

    def verify(self, request: SignedRequest, date: datetime, credential: Credential, keypair: Keypair) -> None:
        """Check a signature.

        Raises:
            InvalidSignature: it is not the keypair's for this request.
            StaleSignature: the request is a change that was received before.
        """
        given = credential.signature.encode()
        if not any(
            hmac.compare_digest(sign(request, date, host, keypair.secret_key).encode(), given) for host in request.hosts
        ):
            raise InvalidSignature()
        if request.is_change:
            self._take_once(bytes.fromhex(credential.signature)[:16], date.timestamp())

    def _take_once(self, mark: bytes, dated_at: float) -> None:
        expired_before = self._now() - self._skew_s
        while self._seen:
            oldest, its_date = next(iter(self._seen.items()))
            if its_date >= expired_before and len(self._seen) < self._remembered:
                break
            del self._seen[oldest]
            if its_date >= expired_before:
                self._forgotten_until = max(self._forgotten_until, its_date)
        if mark in self._seen or dated_at <= self._forgotten_until:
            raise StaleSignature("this signed request was received before; sign each request anew", replayed=True)
        self._seen[mark] = dated_at

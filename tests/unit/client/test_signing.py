from __future__ import annotations

from datetime import UTC, datetime

import pytest

from backendai_ray.client._signing import UniqueClock, sign_request

# Made with backend.ai-client 23.9.10, whose server this is for.
VECTORS = [
    (
        ("GET", "127.0.0.1:8090", "/session/abc?forced=true", "application/octet-stream"),
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "fa48385170a4aacd1c40fe4832a6fa7168266cfd4be507159cc7cdb5b761ffaa",
    ),
    (
        ("POST", "api.example.com", "/session", "application/json"),
        datetime(2030, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        "1919e2a1ee6b3e128ecb4c272b8224aa1f44412b3bf946fcb8a3c4b5499e8a21",
    ),
]


@pytest.mark.parametrize(("request_parts", "date", "signature"), VECTORS)
def test_signatures_are_those_of_the_official_client(
    request_parts: tuple[str, str, str, str], date: datetime, signature: str
) -> None:
    method, host, target, content_type = request_parts
    headers = sign_request(
        method=method,
        target=target,
        host=host,
        content_type=content_type,
        date=date,
        access_key="AKIAEXAMPLE",
        secret_key="s3cr3t-example",
    )
    assert headers["Authorization"] == f"BackendAI signMethod=HMAC-SHA256, credential=AKIAEXAMPLE:{signature}"
    assert headers["Date"] == date.isoformat()
    assert headers["X-BackendAI-Version"] == "v7.20230615"


def test_no_two_requests_have_the_same_date() -> None:
    frozen = datetime(2026, 1, 1, tzinfo=UTC)
    clock = UniqueClock(lambda: frozen)
    dates = [clock() for _ in range(100)]
    assert len(set(dates)) == 100
    assert dates == sorted(dates)

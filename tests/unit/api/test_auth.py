"""Who may come in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from backendai_ray.api.auth import Signatures, parse_date
from backendai_ray.api.keypairs import Keypairs
from backendai_ray.config import Settings
from backendai_ray.core.errors import StaleSignature, Unavailable, UnknownAccessKey
from backendai_ray.core.ids import AccessKey
from tests.support.api_fakes import INACTIVE, USER, FakeCluster
from tests.support.signing import SignedAuth, signed_headers

HOST = "127.0.0.1:8090"


async def _denied(response: httpx.Response, code: str) -> str:
    assert response.status_code == 401, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    return str(response.json()["msg"])


async def test_versions_need_no_key(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.get("/")
    assert response.json()["version"] == "v7.20230615"


async def test_everything_else_does(anonymous: httpx.AsyncClient) -> None:
    for path in ("/session", "/session/x", "/nowhere", "/v7/session"):
        await _denied(await anonymous.get(path), "authorization-missing")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer token",
        "BackendAI credential=a:b",
        "BackendAI signMethod=HMAC-SHA1, credential=AKIAUSER:abcd",
        "BackendAI signMethod=HMAC-SHA256, credential=AKIAUSER",
        "BackendAI signMethod=HMAC-SHA256, credential=AKIAUSER:zzzz",
    ],
)
async def test_unusable_headers(anonymous: httpx.AsyncClient, header: str) -> None:
    headers = {"Authorization": header, "Date": datetime.now(UTC).isoformat()}
    await _denied(await anonymous.get("/session", headers=headers), "authorization-missing")


async def test_wrong_secret(anonymous: httpx.AsyncClient) -> None:
    wrong = replace(USER, secret_key="guessed")
    await _denied(await anonymous.get("/session", auth=SignedAuth(wrong)), "invalid-signature")


async def test_unknown_and_inactive_keys(anonymous: httpx.AsyncClient) -> None:
    unknown = replace(USER, access_key=AccessKey("AKIANOBODY"))
    await _denied(await anonymous.get("/session", auth=SignedAuth(unknown)), "unknown-access-key")
    await _denied(await anonymous.get("/session", auth=SignedAuth(INACTIVE)), "unknown-access-key")


@pytest.mark.parametrize("minutes", [-16, 16])
async def test_stale_dates(anonymous: httpx.AsyncClient, minutes: int) -> None:
    date = datetime.now(UTC) + timedelta(minutes=minutes)
    message = await _denied(await anonymous.get("/session", auth=SignedAuth(USER, date=date)), "stale-signature")
    assert "clock" in message


@pytest.mark.parametrize("minutes", [-14, 14])
async def test_dates_within_the_allowed_skew(anonymous: httpx.AsyncClient, minutes: int) -> None:
    date = datetime.now(UTC) + timedelta(minutes=minutes)
    response = await anonymous.get("/session", auth=SignedAuth(USER, date=date))
    assert response.status_code == 200


@pytest.mark.parametrize("tampered", ["path", "query", "method", "host", "content-type", "version", "date"])
async def test_tampering_with_what_is_signed(anonymous: httpx.AsyncClient, tampered: str) -> None:
    headers = signed_headers(USER, method="GET", target="/session?limit=1", host=HOST)
    method, url = "GET", "/session?limit=1"
    match tampered:
        case "path":
            url = "/agents?limit=1"
        case "query":
            url = "/session?limit=2"
        case "method":
            method = "POST"
        case "host":
            headers["Host"] = "elsewhere:8090"
        case "content-type":
            headers["Content-Type"] = "text/plain"
        case "version":
            headers["X-BackendAI-Version"] = "v6.20220315"
        case "date":
            headers["Date"] = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    await _denied(await anonymous.request(method, url, headers=headers), "invalid-signature")


async def test_a_replayed_change_is_refused_and_a_replayed_read_is_not(anonymous: httpx.AsyncClient) -> None:
    read = signed_headers(USER, method="GET", target="/session", host=HOST)
    for _ in range(2):
        assert (await anonymous.get("/session", headers=read)).status_code == 200
    change = signed_headers(USER, method="DELETE", target="/session/gone", host=HOST)
    assert (await anonymous.delete("/session/gone", headers=change)).status_code == 404
    message = await _denied(await anonymous.delete("/session/gone", headers=change), "stale-signature")
    assert "received before" in message


async def test_the_date_may_come_in_the_other_header(anonymous: httpx.AsyncClient) -> None:
    headers = signed_headers(USER, method="GET", target="/session", host=HOST)
    headers["X-BackendAI-Date"] = headers.pop("Date")
    assert (await anonymous.get("/session", headers=headers)).status_code == 200


async def test_the_version_prefix_is_signed_and_not_routed(client: httpx.AsyncClient) -> None:
    for prefix in ("/v7", "/v4", "/v7.20230615"):
        assert (await client.get(f"{prefix}/session")).status_code == 200
    assert (await client.get("/v7/nothing")).status_code == 404


async def test_a_signature_for_the_advertised_host_is_good(cluster: FakeCluster, settings: Settings) -> None:
    from backendai_ray.api import create_app

    api = settings.api.model_copy(update={"advertised_url": "https://ai.example.com"})
    app = create_app(cluster.services(), settings.model_copy(update={"api": api}))
    headers = signed_headers(USER, method="GET", target="/session", host="ai.example.com")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}") as client:
        assert (await client.get("/session", headers=headers)).status_code == 200


def test_dates_as_http_and_as_iso_have_them() -> None:
    expected = datetime(2026, 11, 23, 21, 41, 35, tzinfo=UTC)
    for text in (
        "2026-11-23T21:41:35+00:00",
        "2026-11-23T21:41:35Z",
        "20261123T214135Z",
        "Mon, 23 Nov 2026 21:41:35 GMT",
    ):
        assert parse_date(text) == expected


def test_remembered_signatures_are_bounded_and_what_was_forgotten_is_refused() -> None:
    now = 1_000_000.0
    signatures = Signatures(clock_skew_s=900, remembered=3, now=lambda: now)
    for number in range(5):
        signatures._take_once(bytes([number]), now + number)
    with pytest.raises(StaleSignature):
        signatures._take_once(bytes([0]), now)
    with pytest.raises(StaleSignature):
        signatures._take_once(bytes([4]), now + 4)
    assert len(signatures._seen) <= 3


class _Source:
    def __init__(self) -> None:
        self.asked = 0
        self.is_away = False

    async def __call__(self, access_key: str) -> object:
        self.asked += 1
        if self.is_away:
            raise Unavailable()
        return USER if access_key == USER.access_key else None


async def test_keypairs_are_asked_for_once_in_a_few_seconds() -> None:
    clock = [0.0]
    source = _Source()
    keypairs = Keypairs(source, now=lambda: clock[0])  # type: ignore[arg-type]
    for _ in range(3):
        assert await keypairs.active(USER.access_key) is USER
    assert source.asked == 1
    clock[0] += 6
    await keypairs.active(USER.access_key)
    assert source.asked == 2
    for _ in range(3):
        with pytest.raises(UnknownAccessKey):
            await keypairs.active("nobody")
    assert source.asked == 3


async def test_a_known_key_stays_good_while_the_manager_is_away_but_not_for_ever() -> None:
    clock = [0.0]
    source = _Source()
    keypairs = Keypairs(source, now=lambda: clock[0])  # type: ignore[arg-type]
    await keypairs.active(USER.access_key)
    source.is_away = True
    clock[0] += 60
    assert await keypairs.active(USER.access_key) is USER
    with pytest.raises(Unavailable):
        await keypairs.active("never-seen")
    clock[0] += 3600
    with pytest.raises(Unavailable):
        await keypairs.active(USER.access_key)

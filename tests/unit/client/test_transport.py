"""What happens when the server is away, answers with an error, or loses an answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from backendai_ray.client import AsyncClient
from backendai_ray.client._problems import raise_for_status
from backendai_ray.core.errors import (
    BackendError,
    FileMissing,
    InvalidParameter,
    InvalidSignature,
    KernelBusy,
    NotFound,
    RequestTimeout,
    StoreUnavailable,
    TooLarge,
    Unavailable,
    all_errors,
)
from tests.support.fake_server import ACCESS_KEY, ENDPOINT, SECRET_KEY, FakeServer, problem


async def test_a_wrong_key_is_an_error_of_its_own(server: FakeServer) -> None:
    async with AsyncClient(ENDPOINT, ACCESS_KEY, "wrong", wire=server.wire) as client:
        with pytest.raises(InvalidSignature):
            await client.sessions.list()
    assert len(server.requests) == 1


async def test_a_server_that_restarts_is_waited_for(async_client: AsyncClient, server: FakeServer) -> None:
    server.fail_next(
        httpx.ConnectError("connection refused"),
        httpx.RemoteProtocolError("server disconnected"),
        problem(StoreUnavailable()),
        httpx.Response(502, text="<html>bad gateway</html>"),
    )
    session = await async_client.sessions.create("python", wait=False)
    assert list(server.sessions) == [session.id]
    keys = {r.headers["idempotency-key"] for r in server.asked("POST", "/session")}
    assert len(keys) == 1, "every attempt of a call must carry the same key"
    dates = [r.headers["date"] for r in server.requests]
    assert len(set(dates)) == 5, "every attempt must be signed anew"


async def test_a_lost_answer_never_makes_two_sessions(async_client: AsyncClient, server: FakeServer) -> None:
    server.lose_next_answer()
    server.lose_next_answer(httpx.RemoteProtocolError("server disconnected"))
    session = await async_client.sessions.create("python", wait=False)
    assert list(server.sessions) == [session.id]
    assert len(server.asked("POST", "/session")) == 3


async def test_a_server_that_never_answers_is_given_up_soon(server: FakeServer) -> None:
    async with AsyncClient(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire, connect_patience_s=0.1) as client:
        server.fail_next(*[httpx.ConnectError("connection refused")] * 50)
        with pytest.raises(Unavailable, match=r"cannot be reached.*bai up"):
            await client.sessions.list()
    assert len(server.requests) < 10


async def test_a_server_that_answered_before_gets_more_patience(server: FakeServer) -> None:
    async with AsyncClient(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire, connect_patience_s=0) as client:
        await client.hello()
        server.fail_next(httpx.ConnectError("connection refused"), httpx.ConnectError("connection refused"))
        await client.hello()
        server.fail_next(httpx.ReadTimeout("too slow"))
        with pytest.raises(RequestTimeout):
            await client.hello()


async def test_an_answer_can_say_when_to_come_again(async_client: AsyncClient, server: FakeServer) -> None:
    server.fail_next(problem(KernelBusy(), retry_after="0"))
    await async_client.hello()
    server.fail_next(problem(KernelBusy()))
    with pytest.raises(KernelBusy):
        await async_client.hello()


async def test_other_errors_are_raised_at_once(async_client: AsyncClient, server: FakeServer) -> None:
    server.fail_next(problem(InvalidParameter("resources.cpu: -1 is no amount", field="resources.cpu")))
    with pytest.raises(InvalidParameter, match="no amount") as caught:
        await async_client.sessions.create("python", cpu=-1)
    assert caught.value.details == {"field": "resources.cpu", "request_id": "req-1"}
    assert len(server.requests) == 1


@pytest.mark.parametrize("cls", all_errors().values(), ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_its_class(cls: type[BackendError]) -> None:
    response = problem(cls("what happened", field="name"))
    with pytest.raises(cls, match="what happened") as caught:
        raise_for_status(response.status_code, response.headers, response.content)
    assert type(caught.value).code == cls.code
    assert caught.value.details["field"] == "name"


@pytest.mark.parametrize(
    ("status", "body", "cls"),
    [
        (404, b"<html>", NotFound),
        (413, b"", TooLarge),
        (503, b"null", Unavailable),
        (418, b"[]", BackendError),
        (404, b'{"code": 7, "details": []}', NotFound),
        (404, b'{"code": "file-missing", "msg": "gone", "details": {"message": 1, "self": 2}}', FileMissing),
    ],
)
def test_answers_of_proxies_are_errors_too(status: int, body: bytes, cls: type[BackendError]) -> None:
    with pytest.raises(cls):
        raise_for_status(status, {}, body)


async def test_many_calls_at_once(async_client: AsyncClient, server: FakeServer) -> None:
    await asyncio.gather(*(async_client.hello() for _ in range(50)))
    assert len({r.headers["authorization"] for r in server.requests}) == 50

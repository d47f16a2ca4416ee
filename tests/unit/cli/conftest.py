from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from backendai_ray.cli import main, options
from backendai_ray.client import Client
from tests.support.fake_server import ACCESS_KEY, ENDPOINT, SECRET_KEY, FakeServer


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Bai = Callable[..., Outcome]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def bai(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bai:
    """Run ``bai`` as a shell does, against the fake server: arguments in; exit code, stdout and stderr out."""

    def make_client() -> Client:
        return Client(ENDPOINT, ACCESS_KEY, SECRET_KEY, wire=server.wire, connect_patience_s=0)

    monkeypatch.setattr(options, "make_client", make_client)

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main(list(arguments))
        sys.stdout.flush()
        captured = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, captured.out, captured.err)

    return run

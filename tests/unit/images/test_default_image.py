"""Which image the cluster's ``python`` is, and that it is made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, ImageNotFound

from backendai_ray.core.errors import EngineUnavailable
from backendai_ray.images import DEFAULT_REFERENCE, debian, default_image, ensure_default_image


class FakeEngine:
    """An engine's images, and what was done to them."""

    def __init__(self, *present: str, in_reach: tuple[str, ...] = (), broken: bool = False) -> None:
        self.present = set(present)
        self.in_reach = in_reach
        self.broken = broken
        self.built = 0
        self.images = self
        self.labels: dict[str, str] = {}
        """Of whatever image is asked for."""

    def get(self, reference: str) -> FakeEngine:
        if self.broken:
            raise APIError("the engine is on fire")
        if reference not in self.present:
            raise ImageNotFound("no such image")
        return self

    def pull(self, reference: str) -> None:
        if reference not in self.in_reach:
            raise APIError("no route to the registry")
        self.present.add(reference)


@pytest.fixture(autouse=True)
def build_in_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(client: Any, _report: object) -> None:
        client.built += 1
        client.labels = dict(default_image._LABELS)
        client.present.add(DEFAULT_REFERENCE)

    (tmp_path / "debootstrap").touch()
    monkeypatch.setattr(default_image, "_build", build)
    monkeypatch.setattr(default_image, "find_debootstrap", lambda: tmp_path / "debootstrap")


def ensure(engine: FakeEngine, reference: str | None = None) -> tuple[str, list[str]]:
    said: list[str] = []
    client: Any = engine
    return ensure_default_image(client, reference=reference, progress=said.append), said


def test_nothing_is_done_or_said_when_it_is_there() -> None:
    engine = FakeEngine(DEFAULT_REFERENCE)
    assert ensure(engine) == (DEFAULT_REFERENCE, [])
    assert engine.built == 0


def test_it_is_made_when_it_is_missing() -> None:
    engine = FakeEngine()
    assert ensure(engine)[0] == DEFAULT_REFERENCE
    assert engine.built == 1


def test_one_that_an_earlier_release_made_is_made_anew() -> None:
    engine = FakeEngine(DEFAULT_REFERENCE)
    engine.labels = {**default_image._LABELS, default_image._RECIPE: "1"}
    for _ in range(2):
        assert ensure(engine) == (DEFAULT_REFERENCE, [])
    assert engine.built == 1


def test_one_that_an_earlier_release_made_will_do_where_none_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_image, "find_debootstrap", debian.find_debootstrap)
    monkeypatch.setattr(debian, "_SYSTEM_PATH", "/nowhere")
    engine = FakeEngine(DEFAULT_REFERENCE)
    engine.labels = {default_image._TITLE: default_image._LABELS[default_image._TITLE]}
    reference, said = ensure(engine)
    assert reference == DEFAULT_REFERENCE
    assert "stays in use" in said[0]


def test_the_configured_image_is_taken_when_the_engine_has_it() -> None:
    engine = FakeEngine("ours:1")
    assert ensure(engine, "ours:1") == ("ours:1", [])
    assert engine.built == 0


def test_the_configured_image_is_pulled_when_a_registry_is_in_reach() -> None:
    engine = FakeEngine(in_reach=("ours:1",))
    assert ensure(engine, "ours:1") == ("ours:1", ["pulling ours:1"])


def test_the_image_made_here_stands_in_for_one_that_cannot_be_pulled() -> None:
    engine = FakeEngine()
    reference, said = ensure(engine, "ours:1")
    assert reference == DEFAULT_REFERENCE
    assert f"using {DEFAULT_REFERENCE} instead of ours:1" in said


def test_many_callers_build_once() -> None:
    engine = FakeEngine()
    with ThreadPoolExecutor(8) as pool:
        references = {reference for reference, _ in pool.map(lambda _: ensure(engine), range(8))}
    assert references == {DEFAULT_REFERENCE}
    assert engine.built == 1


def test_an_engine_that_fails_is_our_error() -> None:
    with pytest.raises(EngineUnavailable, match="on fire"):
        ensure(FakeEngine(broken=True))


def test_without_debootstrap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_image, "find_debootstrap", debian.find_debootstrap)
    monkeypatch.setattr(debian, "_SYSTEM_PATH", "/nowhere")
    with pytest.raises(EngineUnavailable, match="apt-get install debootstrap"):
        ensure(FakeEngine())

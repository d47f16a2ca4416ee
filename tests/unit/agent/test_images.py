"""Pulling: what is said while it goes on, what failures mean, which images may go, and that work is shared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actors.agent.backends.base import PreparedImage, Tell
from actors.agent.backends.docker.image_disk import PulledImage, PulledImages, removable
from actors.agent.backends.docker.image_labels import minimum_of
from actors.agent.backends.docker.pulling import PullProgress, pull, registry_of
from actors.agent.images import ImageDesk
from actors.agent.offload import Offload
from backendai_ray.config import RegistryLogin
from backendai_ray.core.errors import BackendError, EngineUnavailable, ImageNotFound
from backendai_ray.core.slots import ResourceSlots
from tests.support.waiting import wait_until_async

MIB = 2**20


class Engine:
    """Answers a pull with given events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events
        self.asked: list[tuple[Any, ...]] = []

    def pull(self, name: str, *, tag: str | None, auth_config: object, **_: object) -> Any:
        self.asked.append((name, tag, auth_config))
        return iter(self.events)


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("python", "docker.io"),
        ("lablup/python:3.11", "docker.io"),
        ("localhost/x", "localhost"),
        ("127.0.0.1:5000/x:1", "127.0.0.1:5000"),
        ("hub.example.org/a/b@sha256:00", "hub.example.org"),
    ],
)
def test_where_an_image_comes_from(reference: str, registry: str) -> None:
    assert registry_of(reference) == registry


def test_the_login_is_shown_to_its_registry_alone() -> None:
    engine = Engine()
    logins = {"hub.example.org": RegistryLogin(username="me", password="secret")}  # type: ignore[arg-type]
    pull(engine, "hub.example.org/a:1", logins, print)  # type: ignore[arg-type]
    pull(engine, "other.example.org/a", logins, print)  # type: ignore[arg-type]
    pull(engine, "x@sha256:00", logins, print)  # type: ignore[arg-type]
    assert engine.asked == [
        ("hub.example.org/a", "1", {"username": "me", "password": "secret"}),
        ("other.example.org/a", "latest", None),
        ("x@sha256:00", None, None),
    ]


def test_layers_add_up() -> None:
    progress = PullProgress("x:1")
    assert progress.sentence() == "getting the image x:1"
    for layer, current in (("a", 10), ("b", 30)):
        progress.take({"id": layer, "status": "Pulling fs layer", "progressDetail": {}})
        detail = {"current": current * MIB, "total": 40 * MIB}
        progress.take({"id": layer, "status": "Downloading", "progressDetail": detail})
    progress.take({"id": "c", "status": "Already exists", "progressDetail": {}})
    assert progress.sentence() == "getting the image x:1: 40 of 80 MiB, 1 of 3 layers are there"
    progress.take({"id": "b", "status": "Pull complete", "progressDetail": {}})
    assert progress.sentence() == "getting the image x:1: 50 of 80 MiB, 2 of 3 layers are there"


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ("manifest for x:1 not found: manifest unknown", ImageNotFound, "nor where it would come from"),
        ("pull access denied for x, repository does not exist", ImageNotFound, "wants a login"),
        ("Get http://x: no basic auth credentials", ImageNotFound, r"docker.io wants a login \\(agent.registries"),
        ("dial tcp 127.0.0.1:9: connect: connection refused", EngineUnavailable, "cannot be pulled now"),
        ("", EngineUnavailable, "cannot be pulled now"),
    ],
)
def test_what_a_failure_means(said: str, error: type[BackendError], match: str) -> None:
    engine = Engine({"status": "Pulling"}, {"error": said or " "})
    with pytest.raises(error, match=match.replace("\\\\", "\\")):
        pull(engine, "x:1", {}, print)  # type: ignore[arg-type]


def test_a_login_that_is_refused_is_named() -> None:
    engine = Engine({"error": "unauthorized: authentication required"})
    logins = {"docker.io": RegistryLogin(username="me", password="secret")}  # type: ignore[arg-type]
    with pytest.raises(ImageNotFound, match=r"login in agent\.registries for docker\.io is refused") as caught:
        pull(engine, "x:1", logins, print)  # type: ignore[arg-type]
    assert "secret" not in caught.value.message


def test_the_longest_unused_goes_first() -> None:
    pulled = {
        name: PulledImage(reference=name, used_at=at)
        for name, at in (("new", 9.0), ("old", 1.0), ("used", 0.0), ("default", 0.0), ("middle", 5.0))
    }
    assert removable(pulled, in_use={"used"}, kept=["default"]) == ["old", "middle", "new"]


def test_what_was_pulled_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "pulled.json"
    images = PulledImages(path)
    images.pulled("a", "x:1", 1.0)
    images.pulled("b", "y:1", 2.0)
    images.used("a", 3.0)
    images.used("built here", 3.0)
    images.forget("b")
    assert PulledImages(path).all() == {"a": PulledImage(reference="x:1", used_at=3.0)}
    path.write_bytes(b"{damaged")
    assert PulledImages(path).all() == {}


def test_labels_say_what_is_needed_and_lies_are_passed_over() -> None:
    labels = {
        "ai.backend.resource.min.cpu": "2",
        "ai.backend.resource.min.mem": "64m",
        "ai.backend.resource.min.cuda.shares": "many",
        "ai.backend.kernelspec": "1",
    }
    assert minimum_of(labels, "x") == ResourceSlots({"cpu": 2000, "mem": 64 * MIB})


class Backend:
    def __init__(self) -> None:
        self.calls = 0
        self.go = threading.Event()
        self.error: BackendError | None = None

    def prepare_image(self, reference: str, architecture: str, tell: Tell) -> PreparedImage:
        self.calls += 1
        tell("half of it is there")
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return PreparedImage(reference=reference, id="1")


def _true_when(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def ask() -> object:
        return condition()

    return ask


async def test_many_wait_for_one_pull_and_hear_of_it() -> None:
    backend, offload = Backend(), Offload(quick=1, slow=1)
    desk = ImageDesk(backend, offload)  # type: ignore[arg-type]
    heard: list[list[str]] = [[], [], []]
    waiting = [asyncio.create_task(desk.prepare("x", "", heard[number].append)) for number in range(2)]
    await wait_until_async(_true_when(lambda: heard[0] and heard[1]))
    late = asyncio.create_task(desk.prepare("x", "", heard[2].append))
    waiting[0].cancel()
    await asyncio.sleep(0)
    backend.go.set()
    assert (await waiting[1]).id == (await late).id == "1"
    assert backend.calls == 1
    assert heard == [["half of it is there"]] * 3
    backend.error = ImageNotFound("gone")
    with pytest.raises(ImageNotFound):
        await desk.prepare("x", "", print)
    assert backend.calls == 2
    offload.close()

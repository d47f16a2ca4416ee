"""Images from a real registry that wants a login: pulled, refused, told about, and removed when the disk is full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest

from actors.agent.backends.docker import DockerBackend, images
from backendai_ray.config import Settings
from backendai_ray.core.errors import ImageNotFound
from backendai_ray.core.ids import AgentId
from tests.support.processes import free_port, running_server
from tests.support.requirements import missing

pytestmark = pytest.mark.docker

USER, PASSWORD = "puller", "pull-me"
_HTPASSWD = f"{USER}:$2b$12$E9lqW7zJesNrXgTMydbZ.u06EnN4x/c/CRuV1WNObJTItjtCCfQNm\n"
_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback; its ``host:port``."""
    program = shutil.which("docker-registry")
    if program is None:
        missing("docker-registry is not installed")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "htpasswd").write_text(_HTPASSWD)
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port))

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).status_code == 401
        except httpx.TransportError:
            return False

    with running_server([program, "serve", folder / "config.yml"], is_ready=is_ready, log=folder / "log"):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def only_there(registry: str, docker_engine: docker.DockerClient, no_python_image: str) -> Iterator[str]:
    """An image that the registry has and the engine does not."""
    reference = f"{registry}/tests/tool:1"
    image = docker_engine.images.get(no_python_image)
    container = docker_engine.containers.create(image.id)
    try:
        # Not the same image under another name: removing it must not touch the one that was made here.
        own = container.commit(f"{registry}/tests/tool", "1", changes="LABEL ai.backend.resource.min.mem=32m")
    finally:
        container.remove()
    pushed = docker_engine.images.push(
        f"{registry}/tests/tool", tag="1", auth_config={"username": USER, "password": PASSWORD}
    )
    assert "error" not in pushed
    docker_engine.images.remove(reference)
    yield reference
    if docker_engine.images.list(f"{registry}/tests/tool"):
        docker_engine.images.remove(own.id, force=True)


def opened(settings: Settings, agent_id: AgentId, **agent: object) -> DockerBackend:
    changed = type(settings).model_validate(
        {**settings.model_dump(), "agent": {**settings.agent.model_dump(), **agent}, "bus": {}}
    )
    backend = DockerBackend(changed, agent_id)
    backend.open()
    return backend


def test_a_login_opens_the_registry_and_the_pull_is_told(
    settings: Settings, agent_id: AgentId, registry: str, only_there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.agent.backends.docker.pulling.TELL_INTERVAL_S", 0.0)
    backend = opened(settings, agent_id, registries={registry: {"username": USER, "password": PASSWORD}})
    heard: list[str] = []
    image = backend.prepare_image(only_there, "", heard.append)
    assert image.shell == "/bin/sh"
    assert str(image.minimum) == "ResourceSlots(mem=32m)"
    assert only_there in backend.images()
    assert any(f"getting the image {only_there}" in sentence for sentence in heard)
    backend.close()


def test_without_a_login_or_with_a_wrong_one_it_is_said(
    settings: Settings, agent_id: AgentId, registry: str, only_there: str
) -> None:
    backend = opened(settings, agent_id)
    with pytest.raises(ImageNotFound, match="wants a login"):
        backend.prepare_image(only_there, "")
    backend.close()
    backend = opened(settings, agent_id, registries={registry: {"username": USER, "password": "wrong"}})
    with pytest.raises(ImageNotFound, match=r"login in agent\.registries for .* is refused"):
        backend.prepare_image(only_there, "")
    with pytest.raises(ImageNotFound, match="cannot be pulled"):
        backend.prepare_image(f"{registry}/tests/no-such-tool", "")
    backend.close()


def test_a_full_disk_costs_images_that_were_pulled_and_are_not_used(
    settings: Settings,
    agent_id: AgentId,
    registry: str,
    only_there: str,
    no_python_image: str,
    docker_engine: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = {registry: {"username": USER, "password": PASSWORD}}
    backend = opened(settings, agent_id, registries=login, image_disk_high_percent=1, image_disk_low_percent=0)
    backend.prepare_image(no_python_image, "")
    backend.prepare_image(only_there, "")
    backend.tidy()
    assert only_there in backend.images(), "it was looked at a moment ago: a kernel may be on its way"
    monkeypatch.setattr(images, "JUST_USED_S", 0.0)
    holder = docker_engine.containers.create(only_there)
    try:
        backend.tidy()
        assert only_there in backend.images()
    finally:
        holder.remove()
    backend.tidy()
    assert only_there not in backend.images()
    assert no_python_image in backend.images(), "it was made here, and could not be got again"
    backend.close()


def test_the_pulls_are_remembered_across_agents(
    settings: Settings, agent_id: AgentId, registry: str, only_there: str
) -> None:
    login = {registry: {"username": USER, "password": PASSWORD}}
    backend = opened(settings, agent_id, registries=login)
    image = backend.prepare_image(only_there, "")
    backend.close()
    known = images.PulledImages(Path(settings.cache_dir) / "pulled-images.json").all()
    assert known[image.id].reference == only_there

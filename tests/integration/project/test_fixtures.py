"""The services that other tests rely on are real, empty and gone afterwards."""

from __future__ import annotations

from typing import Any

import docker
import psycopg
import pytest
import redis

from tests.support.ray_cluster import RayCluster


class Counter:
    """An actor with state."""

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("fixture", ["redis_url", "valkey_url"])
def test_a_redis_protocol_server_is_there_and_empty(fixture: str, request: pytest.FixtureRequest) -> None:
    with redis.Redis.from_url(request.getfixturevalue(fixture)) as client:
        assert client.dbsize() == 0
        client.set("left", "over")  # the next test to ask must not see it


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_empty_redis(redis_url: str, turn: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("left") is None
        client.set("left", turn)


@pytest.mark.postgres
@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_database_of_its_own(postgres_url: str, turn: int) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE only_once (turn int)")
        connection.execute("INSERT INTO only_once VALUES (%s)", [turn])
        assert connection.execute("SELECT turn FROM only_once").fetchall() == [(turn,)]


@pytest.mark.ray
@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_namespace_of_its_own(ray_cluster: RayCluster, turn: int) -> None:
    import ray

    options = {"name": "counter", "namespace": ray_cluster.namespace, "lifetime": "detached", "num_cpus": 0}
    counter: Any = ray.remote(Counter).options(**options).remote()
    assert ray.get(counter.increment.remote(), timeout=30) == 1, f"turn {turn}"
    assert ray_cluster.address.startswith("127.0.0.1:")


@pytest.mark.docker
def test_the_default_image_runs_python_as_anybody(docker_engine: docker.DockerClient, default_image: str) -> None:
    script = "import sys, os; print(sys.version_info[:2] >= (3, 11), os.getcwd(), os.access('.', os.W_OK), 'é')"
    output = docker_engine.containers.run(default_image, ["python", "-c", script], user="1000:1000", remove=True)
    assert output.decode() == "True /home/work True é\n"


@pytest.mark.docker
def test_an_image_without_python(docker_engine: docker.DockerClient, no_python_image: str) -> None:
    command = ["sh", "-c", "echo here; command -v python3 bash || echo none"]
    assert docker_engine.containers.run(no_python_image, command, remove=True) == b"here\nnone\n"


@pytest.mark.docker
def test_an_image_that_ends_at_once(docker_engine: docker.DockerClient, exits_at_once_image: str) -> None:
    with pytest.raises(docker.errors.ContainerError, match="exit status 7"):
        docker_engine.containers.run(exits_at_once_image, ["sleep", "1000"], remove=True)

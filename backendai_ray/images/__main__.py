"""``python -m backendai_ray.images``: have the default image there, and say which reference it has."""

from __future__ import annotations

import sys
from contextlib import closing

import docker
from docker.errors import DockerException

from backendai_ray.core.errors import BackendError, EngineUnavailable
from backendai_ray.images.default_image import ensure_default_image


def main() -> int:
    """Returns the exit code: 0 when the image is there, 1 with a sentence on stderr otherwise."""
    try:
        try:
            client = docker.from_env()
        except DockerException as error:
            raise EngineUnavailable(f"No Docker engine answers: {error}") from error
        with closing(client):
            reference = ensure_default_image(client, progress=lambda line: print(line, file=sys.stderr))
    except BackendError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())

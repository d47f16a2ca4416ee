"""Kernels as containers of a Docker engine (or of Podman's Docker-compatible socket)."""

from actors.agent.backends.docker.backend import DockerBackend

__all__ = ["DockerBackend"]

"""Kernels as process trees of their own on the agent's machine, where no container engine is."""

from actors.agent.backends.process.backend import ProcessBackend

__all__ = ["ProcessBackend"]

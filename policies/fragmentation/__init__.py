"""The agent selection ``fragmentation``: free accelerators stay usable for the requests that are expected."""

from .selection import Fragmentation

__all__ = ["Fragmentation"]

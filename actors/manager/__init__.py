"""The Manager: the only writer of durable state."""

from .manager import Manager

__all__ = ["Manager"]

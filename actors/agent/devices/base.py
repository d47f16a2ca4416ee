"""The device plug-ins that are installed; what one is, is said by :mod:`backendai_ray.core.device_plugins`."""

from __future__ import annotations

from importlib.metadata import entry_points

from backendai_ray.config import AgentSettings
from backendai_ray.core.device_plugins import DevicePlugin, Grant

__all__ = ["PLUGIN_GROUP", "DevicePlugin", "Grant", "installed_plugins"]

PLUGIN_GROUP = "backendai_ray.device_plugins"


def installed_plugins(settings: AgentSettings) -> list[DevicePlugin]:
    """Return all device plug-ins that are installed, by name."""
    found = sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name)
    return [point.load()(settings) for point in found]

"""What a device plug-in is: it says what a node has, and how a kernel gets its part of it.

Plug-ins are found by the entry point group ``backendai_ray.device_plugins``; the built-in ones are registered there
like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from backendai_ray.config import AgentSettings
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.slots import SlotName


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a kernel gets, in terms that every compute backend understands."""

    cores: tuple[int, ...] = ()
    """Logical CPUs the kernel may run on; empty: no restriction."""
    cpu_units: int = 0
    """Thousandths of a core it may use together; 0: as much as its cores have."""
    memory_bytes: int = 0
    """Memory and swap together; 0: no limit."""
    environ: Mapping[str, str] = field(default_factory=dict)
    device_paths: tuple[str, ...] = ()
    """Device files to be seen, readable and writable, under the same path."""

    @classmethod
    def join(cls, grants: Iterable[Grant]) -> Grant:
        """Return what several plug-ins grant together."""
        cores: set[int] = set()
        paths: set[str] = set()
        environ: dict[str, str] = {}
        cpu_units = memory_bytes = 0
        for grant in grants:
            cores.update(grant.cores)
            paths.update(grant.device_paths)
            environ.update(grant.environ)
            cpu_units += grant.cpu_units
            memory_bytes += grant.memory_bytes
        return cls(
            cores=tuple(sorted(cores)),
            cpu_units=cpu_units,
            memory_bytes=memory_bytes,
            environ=environ,
            device_paths=tuple(sorted(paths)),
        )


class DevicePlugin(ABC):
    """One family of devices.

    Must: be constructible as ``Plugin(settings)``; name the slots it serves; return the same ids for the same
    hardware after a restart; answer ``devices`` within a second or so. All methods are called from worker threads,
    one at a time.
    """

    name: str

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def slots(self) -> Sequence[SlotName]:
        """The slots whose devices this plug-in lists."""

    @abstractmethod
    def devices(self) -> Sequence[Device]:
        """Return what the node has now, sorted by id; empty where it has none. Must not raise for absent hardware."""

    @abstractmethod
    def grant(self, allocation: Allocation) -> Grant:
        """Return how a kernel with this allocation gets its part of our devices; empty when it has none of ours."""


PLUGIN_GROUP = "backendai_ray.device_plugins"


def installed_plugins(settings: AgentSettings) -> list[DevicePlugin]:
    """Return all device plug-ins that are installed, by name."""
    found = sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name)
    return [point.load()(settings) for point in found]

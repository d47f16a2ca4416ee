"""What a device plug-in is: it says what a node has, how a kernel gets its part of it, and how much is in use.

Plug-ins are found by the entry point group ``backendai_ray.device_plugins``; the built-in ones are registered there
like any other. Authors import all of this from :mod:`backendai_ray.plugins`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .devices import Allocation, Device
from .ids import DeviceId
from .machine import Nic
from .slots import SlotName


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """Devices that a container engine injects with their drivers, as its create call names them."""

    driver: str
    """``nvidia``, or ``cdi`` for the Container Device Interface."""
    device_ids: tuple[str, ...]
    """The driver's names: UUIDs of GPUs, or full CDI names (``nvidia.com/gpu=GPU-…``)."""
    capabilities: tuple[str, ...] = ()
    """What of the driver is injected (``gpu``, ``compute``, ``utility``); CDI has none."""
    device_paths: tuple[str, ...] = ()
    """The device files that stand for them where the backend is no engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantMount:
    """A file or folder of the node that is seen in the kernel."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a kernel gets, in terms that every compute backend understands."""

    cores: tuple[int, ...] = ()
    """Logical CPUs the kernel may run on; empty: no restriction."""
    cpu_units: int = 0
    """Thousandths of a core it may use together; 0: as much as its cores have."""
    memory_bytes: int = 0
    """Memory and swap together; 0: no limit."""
    memory_nodes: tuple[int, ...] = ()
    """NUMA nodes whose memory alone is used; empty: all. The agent sets it, whatever plug-ins say."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables; they win over the user's."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Variables that the user's win over."""
    device_paths: tuple[str, ...] = ()
    """Device files to be seen, readable and writable, under the same path."""
    device_requests: tuple[DeviceRequest, ...] = ()
    mounts: tuple[GrantMount, ...] = ()
    advisory: tuple[SlotName, ...] = ()
    """Slots of which nothing holds the kernel to its part: it is asked to keep to it, and others rely on that."""

    @classmethod
    def join(cls, grants: Iterable[Grant]) -> Grant:
        """Return what several plug-ins grant together."""
        cores: set[int] = set()
        paths: set[str] = set()
        advisory: set[SlotName] = set()
        environ: dict[str, str] = {}
        defaults: dict[str, str] = {}
        requests: list[DeviceRequest] = []
        mounts: list[GrantMount] = []
        cpu_units = memory_bytes = 0
        for grant in grants:
            cores.update(grant.cores)
            paths.update(grant.device_paths)
            advisory.update(grant.advisory)
            environ.update(grant.environ)
            defaults.update(grant.defaults)
            requests += grant.device_requests
            mounts += grant.mounts
            cpu_units += grant.cpu_units
            memory_bytes += grant.memory_bytes
        return cls(
            cores=tuple(sorted(cores)),
            cpu_units=cpu_units,
            memory_bytes=memory_bytes,
            environ=environ,
            defaults=defaults,
            device_paths=tuple(sorted(paths)),
            device_requests=tuple(requests),
            mounts=tuple(mounts),
            advisory=tuple(sorted(advisory)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsage:
    """How much of one device is in use now; ``None`` where it cannot be found out."""

    slot: SlotName
    id: DeviceId
    utilization: float | None = None
    """Of its time, from 0 to 1."""
    memory_used: int | None = None
    """In bytes."""
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    processes: Mapping[int, int] = field(default_factory=dict)
    """Bytes of its memory by process id, as the node numbers processes."""


class DevicePlugin(ABC):
    """One family of devices.

    Must: be constructible as ``Plugin(settings)``, quickly and without touching hardware; name the slots it serves;
    return the same ids for the same hardware after a restart.
    May: override :meth:`usage`, :meth:`note`, :meth:`nics` and :attr:`withheld`.
    All methods but the constructor are called in a thread of the plug-in's own, one at a time. One that raises, or
    does not return in time (10 s), costs nothing but its own devices: the node goes on without them and says why.
    """

    name: str
    withheld: Mapping[str, str] = {}
    """Variables of kernels that have none of our devices, on nodes that have some: what keeps a program from taking
    them anyway."""

    def __init__(self, settings: Any) -> None:
        """Keep the settings.

        Args:
            settings: The node's :class:`backendai_ray.config.AgentSettings`; ``settings.devices.options`` holds what
                the cluster's owner wrote for plug-ins that are not built in, by name.
        """
        self.settings = settings

    @property
    @abstractmethod
    def slots(self) -> Sequence[SlotName]:
        """The slots whose devices this plug-in lists."""

    @abstractmethod
    def devices(self) -> Sequence[Device]:
        """Return what the node has now, sorted by slot and id; empty where it has none. Asked every few seconds.

        Must not raise for absent hardware or drivers: those are nothing to complain of.
        """

    @abstractmethod
    def grant(self, allocation: Allocation) -> Grant:
        """Return how a kernel gets these parts of our devices; empty for none.

        Called with devices alone that :meth:`devices` has listed since the agent's start.
        """

    def usage(self) -> Sequence[DeviceUsage]:
        """Return how much of our devices is in use; devices of which nothing is known may be left out."""
        return ()

    def note(self) -> str:
        """Return the sentence that says why something is not offered as it could be; empty when all is well."""
        return ""

    def nics(self) -> Sequence[Nic]:
        """Return network cards that the machine does not tell of itself."""
        return ()

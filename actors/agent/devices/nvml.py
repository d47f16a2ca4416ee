"""NVIDIA GPUs as the driver's management library (NVML) tells of them, through nvidia-ml-py.

Everything here blocks in the driver, which may hang: it is called in the plug-in's own thread alone
(:mod:`.contained`). What a GPU or an old driver does not know is left out; a GPU that fails is told as trouble and
costs the others nothing.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from .sysfs import normal_address

log = structlog.get_logger()

_LIBRARY = "libnvidia-ml.so.1"
_PROFILE = re.compile(r"\bMIG (\S+)$")
MAX_INSTANCES = 64
SWITCH = "switch"
"""Stands for NVSwitches among the peers of NVLinks: whoever has lanes to them reaches all others that have."""


class NoDriver(Exception):
    """This machine has no NVIDIA driver (or its library is not to be seen from here)."""


class NvmlFailed(Exception):
    """The driver is there and does not work; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A part of a GPU in hardware, with memory and compute units of its own."""

    uuid: str
    profile: str
    """``1g.10gb``, ``1c.3g.20gb``, …"""
    memory_bytes: int
    gpu_instance: int = 0
    compute_instance: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU."""

    uuid: str
    index: int
    minor: int | None
    """The number of its device file, ``/dev/nvidiaN``."""
    name: str
    memory_bytes: int
    address: str
    """Of the PCI device, as sysfs writes it."""
    numa_node: int | None = None
    """Where its memory is near to, as the driver says."""
    has_mig: bool = False
    """MIG is on: it is given out as its instances, or not at all."""
    instances: tuple[MigInstance, ...] = ()
    nvlinks: Mapping[str, int] = field(default_factory=dict)
    """Lanes that are up, by the PCI address of the peer, or :data:`SWITCH`."""
    nvlink_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    """How much of a GPU or an instance is in use; ``None`` where the driver does not say."""

    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    processes: Mapping[int, int] = field(default_factory=dict)


class Nvml:
    """One session with the library; opened with the first question, anew after a failure."""

    def __init__(self, library: Any = None) -> None:
        """Keep what plays the module ``pynvml``; ``None``: it, once the driver's library is there."""
        self._given = library
        self._lib: Any = None
        self._handles: dict[str, Any] = {}
        self.troubles: tuple[str, ...] = ()
        """What did not work when the GPUs were last read, a sentence each."""

    def gpus(self) -> list[Gpu]:
        """Return the GPUs that work, by index.

        Raises:
            NoDriver: there is no driver here.
            NvmlFailed: it is there and does not work.
        """
        lib = self._open()
        troubles = []
        found = []
        self._handles = {}
        try:
            count = lib.nvmlDeviceGetCount()
        except lib.NVMLError as error:
            self.close()
            raise NvmlFailed(f"the NVIDIA driver does not list its GPUs: {error}") from error
        for index in range(count):
            try:
                found.append(self._gpu(index))
            except lib.NVMLError as error:
                troubles.append(f"GPU {index} is left out, since it does not answer: {error}")
        self.troubles = tuple(troubles)
        return found

    def common_ancestors(self, gpus: list[Gpu]) -> dict[tuple[str, str], int]:
        """Return how near two GPUs are by PCIe, for each pair: one of NVML's topology levels (smaller is nearer)."""
        found = {}
        for one in gpus:
            for other in gpus:
                if one.index < other.index:
                    level = self._maybe(
                        self._lib.nvmlDeviceGetTopologyCommonAncestor, *map(self._handles.get, (one.uuid, other.uuid))
                    )
                    if level is not None:
                        found[one.uuid, other.uuid] = int(level)
        return found

    def load(self, uuid: str) -> GpuLoad:
        """Return how much of a GPU or instance is in use now; one that fails has no figures."""
        handle, lib = self._handles.get(uuid), self._lib
        if handle is None or lib is None:
            return GpuLoad()
        try:
            memory = self._maybe(lib.nvmlDeviceGetMemoryInfo, handle)
            rates = self._maybe(lib.nvmlDeviceGetUtilizationRates, handle)
            milliwatts = self._maybe(lib.nvmlDeviceGetPowerUsage, handle)
            degrees = self._maybe(lib.nvmlDeviceGetTemperature, handle, lib.NVML_TEMPERATURE_GPU)
            processes = self._maybe(lib.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        except lib.NVMLError:
            return GpuLoad()
        return GpuLoad(
            utilization=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_c=None if degrees is None else float(degrees),
            processes={int(one.pid): int(one.usedGpuMemory or 0) for one in processes},
        )

    def close(self) -> None:
        """End the session."""
        lib, self._lib = self._lib, None
        if lib is not None:
            try:
                lib.nvmlShutdown()
            except lib.NVMLError as error:
                log.debug("cuda.not_closed", error=str(error))

    # ── the library ───────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> Any:
        if self._lib is not None:
            return self._lib
        lib = self._given or _load_library()
        try:
            lib.nvmlInit()
        except lib.NVMLError as error:
            if error.value in (lib.NVML_ERROR_LIBRARY_NOT_FOUND, lib.NVML_ERROR_DRIVER_NOT_LOADED):
                raise NoDriver(str(error)) from error
            raise NvmlFailed(f"the NVIDIA driver does not work: {error}") from error
        self._lib = lib
        return lib

    def _maybe(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns; ``None`` where this GPU or driver does not know such a thing."""
        lib = self._lib
        try:
            return function(*arguments)
        except lib.NVMLError as error:
            unknown = (
                lib.NVML_ERROR_NOT_SUPPORTED,
                lib.NVML_ERROR_FUNCTION_NOT_FOUND,
                lib.NVML_ERROR_INVALID_ARGUMENT,
                lib.NVML_ERROR_NOT_FOUND,
                lib.NVML_ERROR_NO_PERMISSION,
            )
            if error.value in unknown:
                return None
            raise

    # ── one GPU ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _gpu(self, index: int) -> Gpu:
        lib = self._lib
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(lib.nvmlDeviceGetUUID(handle))
        has_mig = self._has_mig(handle)
        instances = tuple(self._instances(handle)) if has_mig else ()
        links, version = self._nvlinks(handle)
        gpu = Gpu(
            uuid=uuid,
            index=index,
            minor=self._maybe(lib.nvmlDeviceGetMinorNumber, handle),
            name=_text(lib.nvmlDeviceGetName(handle)),
            memory_bytes=int(lib.nvmlDeviceGetMemoryInfo(handle).total),
            address=normal_address(_text(lib.nvmlDeviceGetPciInfo(handle).busId)),
            numa_node=self._numa_node(handle),
            has_mig=has_mig,
            instances=instances,
            nvlinks=links,
            nvlink_version=version,
        )
        self._handles[uuid] = handle
        return gpu

    def _has_mig(self, handle: Any) -> bool:
        mode = self._maybe(self._lib.nvmlDeviceGetMigMode, handle)
        return mode is not None and mode[0] == self._lib.NVML_DEVICE_MIG_ENABLE

    def _instances(self, handle: Any) -> Iterator[MigInstance]:
        lib = self._lib
        most = self._maybe(lib.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        for number in range(min(int(most), MAX_INSTANCES)):
            instance = self._maybe(lib.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if instance is None:
                continue
            match = _PROFILE.search(_text(lib.nvmlDeviceGetName(instance)))
            uuid = _text(lib.nvmlDeviceGetUUID(instance))
            self._handles[uuid] = instance
            yield MigInstance(
                uuid=uuid,
                profile=match[1] if match else "unknown",
                memory_bytes=int(lib.nvmlDeviceGetMemoryInfo(instance).total),
                gpu_instance=int(self._maybe(lib.nvmlDeviceGetGpuInstanceId, instance) or 0),
                compute_instance=int(self._maybe(lib.nvmlDeviceGetComputeInstanceId, instance) or 0),
            )

    def _numa_node(self, handle: Any) -> int | None:
        words = self._maybe(self._lib.nvmlDeviceGetMemoryAffinity, handle, 16, self._lib.NVML_AFFINITY_SCOPE_NODE)
        nodes = [64 * i + bit for i, word in enumerate(words or ()) for bit in range(64) if word >> bit & 1]
        return nodes[0] if len(nodes) == 1 else None

    def _nvlinks(self, handle: Any) -> tuple[dict[str, int], int]:
        """Return the lanes that are up by peer, and the version of the links."""
        lib = self._lib
        lanes: dict[str, int] = {}
        version = 0
        for link in range(lib.NVML_NVLINK_MAX_LINKS):
            state = self._maybe(lib.nvmlDeviceGetNvLinkState, handle, link)
            if state is None:
                break  # there are no more
            if state != lib.NVML_FEATURE_ENABLED:
                continue
            version = max(version, int(self._maybe(lib.nvmlDeviceGetNvLinkVersion, handle, link) or 0))
            peer = SWITCH
            if self._maybe(lib.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) != lib.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                place = self._maybe(lib.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
                if place is None:
                    continue
                peer = normal_address(_text(place.busId))
            lanes[peer] = lanes.get(peer, 0) + 1
        return lanes, version


def _load_library() -> Any:
    try:
        # nvidia-ml-py is large; most machines need not load it to learn that they have no driver.
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoDriver(str(error)) from error
    import pynvml

    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

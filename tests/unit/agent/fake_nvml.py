"""A driver's library that is not there: what plays the module ``pynvml``, with its own constants and errors."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass
class FakeInstance:
    profile: str
    memory: int
    gpu_instance: int
    compute_instance: int = 0
    uuid: str = ""


@dataclass
class FakeGpu:
    bus: str
    name: str = "Tesla V100-SXM2-16GB"
    memory: int = 16 * 2**30
    links: Sequence[str] = ()
    """The peer's bus of each NVLink; ``switch``; or empty for one that is down."""
    mig: Sequence[FakeInstance] | None = None
    affinity: Sequence[int] = ()
    load: tuple[int, int, int, int] | None = None
    """Percent, bytes, milliwatts, degrees."""
    processes: Mapping[int, int] = field(default_factory=dict)
    error: int | None = None
    """What every question about it fails with."""


class FakeNvml:
    """Answers for some GPUs; anything that it does not have is "not supported", as in an old driver."""

    def __init__(self, *gpus: FakeGpu, levels: Sequence[Sequence[int]] = (), init_error: int | None = None) -> None:
        self.gpus = list(gpus)
        self.levels = levels
        self.init_error = init_error
        self.calls: list[str] = []
        self.gate = threading.Event()
        """Calls hang until it is set, as they do in a driver that is stuck."""
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice"):
            return getattr(pynvml, name)
        raise_error = self._fail
        return lambda *_: raise_error(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _fail(self, code: int) -> Any:
        raise pynvml.NVMLError(code)

    def _of(self, handle: Any) -> Any:
        assert self.gate.wait(20)
        gpu = handle if isinstance(handle, FakeGpu) else handle[0]
        if gpu.error is not None:
            self._fail(gpu.error)
        return handle

    def nvmlInit(self) -> None:  # noqa: N802 - the driver's own names
        assert self.gate.wait(20)
        self.calls.append("init")
        if self.init_error is not None:
            self._fail(self.init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        assert self.gate.wait(20)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        gpu: FakeGpu = self._of(self.gpus[index])
        return gpu

    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes:  # noqa: N802
        self._of(handle)
        if isinstance(handle, FakeGpu):
            return f"GPU-{handle.bus}".encode()  # older bindings give bytes
        return f"MIG-{handle[0].bus}-{handle[1].gpu_instance}-{handle[1].compute_instance}"

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        self._of(handle)
        return handle.name if isinstance(handle, FakeGpu) else f"{handle[0].name} MIG {handle[1].profile}"

    def nvmlDeviceGetMinorNumber(self, handle: FakeGpu) -> int:  # noqa: N802
        return self.gpus.index(self._of(handle))

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        self._of(handle)
        size = handle.memory if isinstance(handle, FakeGpu) else handle[1].memory
        used = handle.load[1] if isinstance(handle, FakeGpu) and handle.load else 0
        return SimpleNamespace(total=size, used=used)

    def nvmlDeviceGetPciInfo(self, handle: FakeGpu) -> Any:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{self._of(handle).bus.upper()}:00.0")

    def nvmlDeviceGetMemoryAffinity(self, handle: FakeGpu, size: int, scope: int) -> list[int]:  # noqa: N802
        nodes = self._of(handle).affinity
        if not nodes:
            self._fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [sum(1 << (node - 64 * word) for node in nodes if node // 64 == word) for word in range(size)]

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> tuple[int, int]:  # noqa: N802
        mode = self._of(handle).mig is not None
        return int(mode), int(mode)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:  # noqa: N802
        return 7 if self._of(handle).mig is not None else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, number: int) -> Any:  # noqa: N802
        instances = self._of(handle).mig
        if number >= len(instances):
            self._fail(pynvml.NVML_ERROR_NOT_FOUND)
        return handle, instances[number]

    def nvmlDeviceGetGpuInstanceId(self, handle: Any) -> int:  # noqa: N802
        return int(self._of(handle)[1].gpu_instance)

    def nvmlDeviceGetComputeInstanceId(self, handle: Any) -> int:  # noqa: N802
        return int(self._of(handle)[1].compute_instance)

    def nvmlDeviceGetNvLinkState(self, handle: FakeGpu, link: int) -> int:  # noqa: N802
        links = self._of(handle).links
        if link >= len(links):
            self._fail(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(bool(links[link]))

    def nvmlDeviceGetNvLinkVersion(self, handle: FakeGpu, link: int) -> int:  # noqa: N802
        self._of(handle)
        return 2

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: FakeGpu, link: int) -> int:  # noqa: N802
        is_switch = self._of(handle).links[link] == "switch"
        return int(pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if is_switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: FakeGpu, link: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{self._of(handle).links[link].upper()}:00.0")

    def nvmlDeviceGetTopologyCommonAncestor(self, one: FakeGpu, other: FakeGpu) -> int:  # noqa: N802
        if not self.levels:
            self._fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.levels[self.gpus.index(self._of(one))][self.gpus.index(other)]

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        if not isinstance(self._of(handle), FakeGpu) or handle.load is None:
            self._fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=handle.load[0], memory=0)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        if not isinstance(self._of(handle), FakeGpu) or handle.load is None:
            self._fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(handle.load[2])

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        if not isinstance(self._of(handle), FakeGpu) or handle.load is None:
            self._fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(handle.load[3])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        self._of(handle)
        processes = handle.processes if isinstance(handle, FakeGpu) else {}
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes.items()]


DGX1_BUSES = ("06", "07", "0a", "0b", "85", "86", "89", "8a")
_DGX1_LANES = (
    (0, 3, 2), (0, 4, 2), (1, 2, 2), (1, 5, 2), (2, 3, 2), (4, 7, 2), (5, 6, 2), (6, 7, 2),
    (0, 1, 1), (0, 2, 1), (1, 3, 1), (2, 6, 1), (3, 7, 1), (4, 5, 1), (4, 6, 1), (5, 7, 1),
)  # fmt: skip


def dgx1() -> FakeNvml:
    """Return the driver of a DGX-1 that sees no sysfs tree: eight V100, a hybrid cube mesh, four PCIe switches."""
    links: dict[int, list[str]] = {number: [] for number in range(8)}
    for one, other, lanes in _DGX1_LANES:
        links[one] += [DGX1_BUSES[other]] * lanes
        links[other] += [DGX1_BUSES[one]] * lanes
    gpus = [FakeGpu(bus, links=links[i], affinity=[i // 4]) for i, bus in enumerate(DGX1_BUSES)]
    levels = [
        [10 if i // 2 == j // 2 else 30 if i // 4 == j // 4 else 50 for j in range(8)] for i in range(8)
    ]  # two and two below a switch, four below a socket's host bridge
    return FakeNvml(*gpus, levels=levels)

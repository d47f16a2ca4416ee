"""NVIDIA GPUs: whole, as MIG instances, and in hundredths.

A GPU is of one kind at a time. Where MIG is on, its instances are given out (``cuda.mig-1g-10gb``); one that is named
in ``agent.devices.cuda.shared`` is given out in hundredths (``cuda.shares``); all others whole (``cuda.device``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog

from backendai_ray.config import AgentSettings
from backendai_ray.core.device_plugins import DeviceRequest, DeviceUsage
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.links import NVLINK, PCIE, SOCKET, format_nvlink
from backendai_ray.core.slots import UNITS_PER_COUNT, SlotName, plain_amount
from backendai_ray.core.topology import natural_key

from .base import DevicePlugin, Grant
from .cuda_links import nvlink_lanes, sockets_by_ancestors, ways_by_ancestors
from .cuda_mps import Mps
from .nvml import Gpu, MigInstance, NoDriver, Nvml, NvmlFailed
from .sysfs import Sysfs

log = structlog.get_logger()

WHOLE, SHARES = SlotName("cuda.device"), SlotName("cuda.shares")
MEMORY, INDEX, PARENT, LINK_VERSION = "memory", "index", "parent", "nvlink_version"
"""Names of attributes: bytes, the number that nvidia-smi shows, the GPU of an instance, the NVLinks' generation."""

_COMMON_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_MIG_FILES = Path("/proc/driver/nvidia-caps/mig-minors")
_CAPABILITIES = ("gpu", "compute", "utility")


class CudaPlugin(DevicePlugin):
    """Gives out what the driver tells of; hides where there is no driver."""

    name = "cuda"
    settings: AgentSettings
    withheld = MappingProxyType({"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""})

    def __init__(
        self, settings: AgentSettings, *, nvml: Nvml | None = None, sysfs: Sysfs | None = None, mps: Mps | None = None
    ) -> None:
        """Keep the settings; the arguments beside them stand in for the machine in tests."""
        super().__init__(settings)
        self._cuda = settings.devices.cuda
        self._nvml = nvml or Nvml()
        self._sysfs = sysfs or Sysfs()
        self._mps = mps or Mps(Path(self._cuda.mps_pipe_dir), self._cuda.mps_shm_dir)
        self._gpus: dict[str, Gpu] = {}
        self._parts: dict[DeviceId, tuple[Gpu, MigInstance | None]] = {}
        self._slots: set[SlotName] = {WHOLE, SHARES}
        self._note = ""
        self._is_hidden = False

    @property
    def slots(self) -> Sequence[SlotName]:
        return tuple(sorted(self._slots))

    def note(self) -> str:
        return self._note

    # ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────

    def devices(self) -> Sequence[Device]:
        gpus = self._read() if self._cuda.enabled else []
        self._gpus = {gpu.uuid: gpu for gpu in gpus}
        self._parts = {}
        found = list(self._listed(gpus))
        self._slots.update(device.slot for device in found)
        return sorted(found, key=lambda device: (device.slot, natural_key(device.id)))

    def _read(self) -> list[Gpu]:
        try:
            gpus = self._nvml.gpus()
        except NoDriver as reason:
            if not self._is_hidden:
                log.debug("cuda.no_driver", why=str(reason))
            self._is_hidden, self._note = True, ""
            return []
        except NvmlFailed as failure:
            self._note = str(failure)
            return []
        self._is_hidden = False
        notes = [*self._nvml.troubles, *self._wrong_names(gpus)]
        notes += [f"GPU {gpu.index} has MIG on, but no instances" for gpu in gpus if gpu.has_mig and not gpu.instances]
        self._note = "; ".join(notes)
        return gpus

    def _wrong_names(self, gpus: Sequence[Gpu]) -> Iterator[str]:
        names = {name for gpu in gpus for name in (gpu.uuid, str(gpu.index))} | {"all"}
        for name in self._cuda.shared:
            if name not in names:
                yield f"agent.devices.cuda.shared: there is no GPU {name}"

    def _listed(self, gpus: Sequence[Gpu]) -> Iterator[Device]:
        ways, sockets = self._ways(gpus)
        slot_of = {gpu.uuid: self._slot_of(gpu) for gpu in gpus if not gpu.has_mig}
        lanes = nvlink_lanes(gpus)
        for gpu in gpus:
            said = {PCIE: ways[gpu.uuid], SOCKET: sockets.get(gpu.uuid, ""), INDEX: str(gpu.index)}
            if gpu.has_mig:
                yield from self._instances_of(gpu, said)
                continue
            slot = slot_of[gpu.uuid]
            peers = {peer: count for peer, count in lanes[gpu.uuid].items() if slot_of.get(peer) == slot}
            version = str(gpu.nvlink_version or "")
            said |= {NVLINK: format_nvlink(peers), LINK_VERSION: version, MEMORY: str(gpu.memory_bytes)}
            yield self._device(slot, gpu, None, gpu.name, said)

    def _instances_of(self, gpu: Gpu, said: Mapping[str, str]) -> Iterator[Device]:
        for instance in gpu.instances:
            slot = mig_slot(instance.profile)
            way = f"{said[PCIE]}/{gpu.uuid}" if said[PCIE] else ""  # instances of one GPU are nearest to each other
            own = {PARENT: gpu.uuid, MEMORY: str(instance.memory_bytes), PCIE: way}
            yield self._device(slot, gpu, instance, f"{gpu.name} MIG {instance.profile}", {**said, **own})

    def _device(
        self, slot: SlotName, gpu: Gpu, instance: MigInstance | None, model: str, said: Mapping[str, str]
    ) -> Device:
        device_id = DeviceId(instance.uuid if instance else gpu.uuid)
        self._parts[device_id] = (gpu, instance)
        attributes = {name: text for name, text in said.items() if text}
        return Device(slot, device_id, UNITS_PER_COUNT, self._numa_node(gpu), model, attributes)

    def _slot_of(self, gpu: Gpu) -> SlotName:
        is_shared = bool({"all", gpu.uuid, str(gpu.index)} & set(self._cuda.shared))
        return SHARES if is_shared else WHOLE

    def _numa_node(self, gpu: Gpu) -> int | None:
        place = self._sysfs.pci(gpu.address)
        return gpu.numa_node if place.numa_node is None else place.numa_node

    def _ways(self, gpus: Sequence[Gpu]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the ``pcie`` and ``socket`` attributes: from sysfs where it knows all GPUs, else from NVML."""
        ways = {gpu.uuid: self._sysfs.pci(gpu.address).way for gpu in gpus}
        if all(ways.values()):
            return ways, {}
        levels = self._nvml.common_ancestors(list(gpus))
        uuids = [gpu.uuid for gpu in gpus]
        is_placed = all(self._numa_node(gpu) is not None for gpu in gpus)
        return ways_by_ancestors(uuids, levels), {} if is_placed else sockets_by_ancestors(uuids, levels)

    # ── how a kernel gets it ──────────────────────────────────────────────────────────────────────────────────────

    def grant(self, allocation: Allocation) -> Grant:
        mine = [(slot, device, units) for slot, device, units in allocation.parts if slot.startswith("cuda.")]
        if not mine:
            return Grant()
        if not self._parts:
            self.devices()
        mine.sort(key=lambda part: self._order(part[1]))
        uuids = [device for _, device, _ in mine]
        names = ",".join(uuids)
        shares = [(device, units) for slot, device, units in mine if slot == SHARES]
        visible = Grant(
            environ={"NVIDIA_VISIBLE_DEVICES": names, "CUDA_VISIBLE_DEVICES": names},
            defaults={"NVIDIA_DRIVER_CAPABILITIES": "compute,utility", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            device_requests=(self._request(uuids),),
        )
        return Grant.join([visible, self._parted(shares)]) if shares else visible

    def _order(self, device: DeviceId) -> tuple[int, int, int]:
        """Sort as the driver does; a device that is gone meanwhile raises, which fails the start."""
        if device not in self._parts:
            raise LookupError(f"the GPU {device} is not there any more")
        gpu, instance = self._parts[device]
        return (gpu.index, instance.gpu_instance, instance.compute_instance) if instance else (gpu.index, 0, 0)

    def _request(self, uuids: Sequence[DeviceId]) -> DeviceRequest:
        paths = tuple(dict.fromkeys([*_COMMON_FILES, *(path for uuid in uuids for path in self._files(uuid))]))
        if self._cuda.injection == "cdi":
            names = tuple(f"nvidia.com/gpu={uuid}" for uuid in uuids)
            return DeviceRequest(driver="cdi", device_ids=names, device_paths=paths)
        return DeviceRequest(driver="nvidia", device_ids=tuple(uuids), capabilities=_CAPABILITIES, device_paths=paths)

    def _files(self, device: DeviceId) -> Iterator[str]:
        gpu, instance = self._parts[device]
        if gpu.minor is not None:
            yield f"/dev/nvidia{gpu.minor}"
            if instance is not None:
                yield from mig_files(_mig_minors(), gpu.minor, instance)

    def _parted(self, shares: Sequence[tuple[DeviceId, int]]) -> Grant:
        """Return what a kernel with parts of GPUs gets beside seeing them."""
        sizes = [self._parts[device][0].memory_bytes * units // UNITS_PER_COUNT for device, units in shares]
        told = Grant(
            environ={
                "CUDA_SHARES": ",".join(plain_amount(SHARES, units) for _, units in shares),
                "CUDA_SHARES_MEMORY": ",".join(map(str, sizes)),
            }
        )
        if all(units == UNITS_PER_COUNT for _, units in shares):
            return told
        if not self._mps.is_on():
            return Grant.join([told, Grant(advisory=(SHARES,))])
        return Grant.join([told, self._mps.grant([units for _, units in shares], sizes)])

    # ── how much is in use ────────────────────────────────────────────────────────────────────────────────────────

    def usage(self) -> Sequence[DeviceUsage]:
        return [self._usage_of(device, gpu, instance) for device, (gpu, instance) in self._parts.items()]

    def _usage_of(self, device: DeviceId, gpu: Gpu, instance: MigInstance | None) -> DeviceUsage:
        load: Any = self._nvml.load(device)
        return DeviceUsage(
            slot=mig_slot(instance.profile) if instance else self._slot_of(gpu),
            id=device,
            utilization=load.utilization,
            memory_used=load.memory_used,
            memory_total=load.memory_total,
            power_watts=load.power_watts,
            temperature_c=load.temperature_c,
            processes=load.processes,
        )


def mig_slot(profile: str) -> SlotName:
    """Return the slot of MIG instances of a profile: ``cuda.mig-1g-10gb``."""
    return SlotName("cuda.mig-" + re.sub(r"[^a-z0-9]+", "-", profile.lower()).strip("-")[:28])


def mig_files(minors: str, gpu_minor: int, instance: MigInstance) -> Iterator[str]:
    """Yield the device files that let a program into a MIG instance.

    Args:
        minors: The content of ``/proc/driver/nvidia-caps/mig-minors``.
        gpu_minor: Of the GPU's own device file.
        instance: Which one.
    """
    place = f"gpu{gpu_minor}/gi{instance.gpu_instance}"
    wanted = {f"{place}/access", f"{place}/ci{instance.compute_instance}/access"}
    for line in minors.splitlines():
        name, _, minor = line.strip().partition(" ")
        if name in wanted and minor.isdecimal():
            yield f"/dev/nvidia-caps/nvidia-cap{minor}"


def _mig_minors() -> str:
    try:
        return _MIG_FILES.read_text()
    except OSError:
        return ""

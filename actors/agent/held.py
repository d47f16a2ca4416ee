"""Who holds how much of which device on this node: the truth that plans are checked against."""

from __future__ import annotations

from collections.abc import Sequence

from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import KernelId


class HeldDevices:
    """The node's device map, the same that policies plan on; it refuses whatever does not fit."""

    def __init__(self) -> None:
        self._map = DeviceMap(())

    def set_devices(self, devices: Sequence[Device]) -> None:
        """Say what there is; kernels that hold more than is left now keep what they hold."""
        self._map = DeviceMap(devices, dict(self._map.held))

    def hold(self, kernel_id: KernelId, allocation: Allocation) -> None:
        """Give a kernel its devices; the same again is harmless.

        Raises:
            Conflict: something of it is not there or is held by others.
        """
        self._map.hold(kernel_id, allocation)

    def adopt(self, kernel_id: KernelId, allocation: Allocation) -> None:
        """Note what a kernel that was found holds: a fact, which is not judged."""
        self._map.adopt(kernel_id, allocation)

    def release(self, kernel_id: KernelId) -> None:
        """Take back what a kernel holds, if anything."""
        self._map.release(kernel_id)

    def holders(self) -> dict[KernelId, Allocation]:
        """Return who holds what."""
        return dict(self._map.held)

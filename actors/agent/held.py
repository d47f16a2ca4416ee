"""Who holds how much of which device on this node: the truth that plans are checked against."""

from __future__ import annotations

from collections.abc import Sequence

from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import InsufficientResources
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.slots import SlotName, format_amount

_Key = tuple[SlotName, DeviceId]


class HeldDevices:
    """Exact bookkeeping by device; it refuses whatever does not fit, and never counts a kernel twice."""

    def __init__(self) -> None:
        self._capacity: dict[_Key, int] = {}
        self._used: dict[_Key, int] = {}
        self._held: dict[KernelId, Allocation] = {}

    def set_devices(self, devices: Sequence[Device]) -> None:
        """Say what there is; kernels that hold more than is left now keep what they hold."""
        self._capacity = {(device.slot, device.id): device.capacity for device in devices}

    def hold(self, kernel_id: KernelId, allocation: Allocation, *, check: bool = True) -> None:
        """Give a kernel its devices; the same again is harmless.

        Args:
            kernel_id: Who.
            allocation: What.
            check: False for a kernel that was found running: it holds what it holds.

        Raises:
            InsufficientResources: something of it is not there or is held by others.
        """
        if kernel_id in self._held:
            if self._held[kernel_id] == allocation:
                return
            self.release(kernel_id)
        if check:
            self._check(allocation)
        for slot, device, units in allocation.parts:
            self._used[slot, device] = self._used.get((slot, device), 0) + units
        self._held[kernel_id] = allocation

    def release(self, kernel_id: KernelId) -> None:
        """Take back what a kernel holds, if anything."""
        for slot, device, units in self._held.pop(kernel_id, Allocation()).parts:
            left = self._used[slot, device] - units
            if left:
                self._used[slot, device] = left
            else:
                del self._used[slot, device]

    def holders(self) -> dict[KernelId, Allocation]:
        """Return who holds what."""
        return dict(self._held)

    def _check(self, allocation: Allocation) -> None:
        for slot, device, units in allocation.parts:
            capacity = self._capacity.get((slot, device))
            if capacity is None:
                raise InsufficientResources(f"this node has no device {device!r} of {slot}")
            free = capacity - self._used.get((slot, device), 0)
            if units > free:
                raise InsufficientResources(
                    f"{slot} device {device!r} has {format_amount(slot, max(0, free))} free, "
                    f"{format_amount(slot, units)} was planned"
                )

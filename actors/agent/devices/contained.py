"""Device plug-ins at arm's length: one that raises or hangs costs its own devices, never the node.

Each plug-in is called in a thread of its own and waited for only so long. While a call hangs, further calls fail at
once, so nothing piles up behind a driver that does not answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

from backendai_ray.core.device_plugins import DevicePlugin, DeviceUsage, Grant
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId
from backendai_ray.core.machine import Nic
from backendai_ray.core.slots import SlotName

log = structlog.get_logger()

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
FAILED_LOOKS = 2
"""After as many looks in a row without an answer, devices that were there are taken back; one may be bad luck."""


class PluginTroubleError(Exception):
    """A plug-in did not answer, or not with anything sensible; the message says what it did."""


class ContainedPlugin:
    """One plug-in, with what it last said."""

    def __init__(self, plugin: DevicePlugin, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.name = plugin.name
        self.devices: tuple[Device, ...] = ()
        self.nics: tuple[Nic, ...] = ()
        self.note = ""
        """Why something is not offered as it could be; empty when all is well."""
        self._plugin = plugin
        self._timeout_s = timeout_s
        self._worker = _Worker(f"devices-{plugin.name}")
        self._ever_listed: set[tuple[SlotName, DeviceId]] = set()
        self._failed_looks = 0

    def look(self) -> None:
        """Ask what there is; blocks for at most the time limit."""
        try:
            devices, nics, note = self._call(self._look)
        except PluginTroubleError as trouble:
            self._failed_looks += 1
            if self._failed_looks >= FAILED_LOOKS:
                self.devices = ()
            self._say(f"its device plug-in {self.name} {trouble}")
            return
        self._failed_looks = 0
        self.devices, self.nics = devices, nics
        self._ever_listed.update((device.slot, device.id) for device in devices)
        self._say(note)

    def _look(self) -> tuple[tuple[Device, ...], tuple[Nic, ...], str]:
        devices = tuple(self._plugin.devices())
        _check(devices, self._plugin.slots)
        return devices, tuple(self._plugin.nics()), str(self._plugin.note())

    def _say(self, note: str) -> None:
        if note and note != self.note:
            log.warning("devices.note", plugin=self.name, note=note)
        self.note = note

    def knows(self, slot: SlotName, device: DeviceId) -> bool:
        """Return whether the plug-in has listed this device since the agent's start."""
        return (slot, device) in self._ever_listed

    def grant(self, allocation: Allocation) -> Grant:
        """Return what a kernel gets of these devices, all of which are the plug-in's.

        Raises:
            PluginTroubleError: the plug-in does not say.
        """
        return self._call(lambda: self._plugin.grant(allocation))

    @property
    def withheld(self) -> Mapping[str, str]:
        """Variables of kernels that have none of these devices."""
        return self._plugin.withheld if self._ever_listed else {}

    def usage(self) -> Sequence[DeviceUsage]:
        """Return how much is in use; nothing while the plug-in does not answer."""
        try:
            return tuple(self._call(self._plugin.usage)) if self.devices else ()
        except PluginTroubleError as trouble:
            log.debug("devices.no_usage", plugin=self.name, why=str(trouble))
            return ()

    def close(self) -> None:
        """Let the thread end; one that hangs in a call is left behind, which keeps nobody from exiting."""
        self._worker.stop()

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return self._worker.run(function, self._timeout_s)
        except PluginTroubleError:
            raise
        except Exception as error:
            raise PluginTroubleError(f"failed: {str(error)[:300] or type(error).__name__}") from error


def _check(devices: Sequence[Device], slots: Sequence[SlotName]) -> None:
    names = [(device.slot, device.id) for device in devices]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise PluginTroubleError(f"lists the {twice[0]} device {twice[1]} twice")
    for device in devices:
        if device.slot not in slots:
            raise PluginTroubleError(f"lists a device of {device.slot}, which is none of its slots")
        if device.capacity <= 0:
            raise PluginTroubleError(f"lists the {device.slot} device {device.id} with a capacity of {device.capacity}")


class _Worker:
    """A daemon thread that does one thing at a time; made when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: Future[Any] | None = None

    def run(self, function: Callable[[], T], timeout_s: float) -> T:
        """Return what the function returns.

        Raises:
            PluginTroubleError: it takes too long, or an earlier one still does.
            Exception: what the function raised.
        """
        with self._lock:
            if self._stuck is not None and not self._stuck.done():
                raise PluginTroubleError("does not answer: an earlier call still hangs")
            self._stuck = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            answer: Future[T] = Future()
            self._jobs.put((answer, function))
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            if answer.done():
                raise  # the function's own
            with self._lock:
                self._stuck = answer
            raise PluginTroubleError(f"has not answered for {timeout_s:g} s") from None

    def stop(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            answer, function = job
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                answer.set_exception(error)

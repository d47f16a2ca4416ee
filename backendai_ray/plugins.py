"""What authors of plug-ins import: the interfaces and records, and how an installed plug-in is found.

A plug-in is a class that a distribution announces under one of the entry point groups below; the built-in ones are
announced in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from backendai_ray.core.allocator import DeviceMap, Shortage
from backendai_ray.core.device_plugins import DevicePlugin, DeviceRequest, DeviceUsage, Grant, GrantMount
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import BackendError, InvalidParameter, SessionNotFound
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.links import format_nvlink
from backendai_ray.core.machine import Nic
from backendai_ray.core.scheduling import (
    AgentSelection,
    KernelPlacement,
    Node,
    NodeRefusal,
    PendingSession,
    Placement,
    Plan,
    Preemption,
    Refusal,
    RefusalCode,
    RunningKernel,
    SchedulingPolicy,
    Snapshot,
)
from backendai_ray.core.sessions import ClusterMode, SessionType
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots, SlotKind, SlotName, slot_kind

__all__ = [
    "AGENT_SELECTIONS",
    "COMPUTE_BACKENDS",
    "CPU",
    "DEVICE_PLUGINS",
    "MEM",
    "SCHEDULING_POLICIES",
    "UNITS_PER_COUNT",
    "AccessKey",
    "AgentId",
    "AgentSelection",
    "Allocation",
    "BackendError",
    "ClusterMode",
    "Device",
    "DeviceId",
    "DeviceMap",
    "DevicePlugin",
    "DeviceRequest",
    "DeviceUsage",
    "Grant",
    "GrantMount",
    "InvalidParameter",
    "KernelId",
    "KernelPlacement",
    "Nic",
    "Node",
    "NodeRefusal",
    "PendingSession",
    "Placement",
    "Plan",
    "Preemption",
    "Refusal",
    "RefusalCode",
    "ResourceGroupName",
    "ResourceSlots",
    "RunningKernel",
    "SchedulingPolicy",
    "SessionId",
    "SessionNotFound",
    "SessionType",
    "Shortage",
    "SlotKind",
    "SlotName",
    "Snapshot",
    "format_nvlink",
    "installed",
    "load",
    "load_policy",
    "load_selection",
    "slot_kind",
]

SCHEDULING_POLICIES = "backendai_ray.scheduling_policies"
AGENT_SELECTIONS = "backendai_ray.agent_selections"
COMPUTE_BACKENDS = "backendai_ray.compute_backends"
DEVICE_PLUGINS = "backendai_ray.device_plugins"


def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return the plug-ins of an entry point group by name; they are not imported by this."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def load(group: str, name: str, *, field: str = "plugin") -> Any:
    """Return what a plug-in's entry point names, usually a class.

    Args:
        group: The entry point group.
        name: The plug-in.
        field: The setting that named it, for the error.

    Raises:
        InvalidParameter: no such plug-in is installed (the message lists those that are), or its import failed.
    """
    known = installed(group)
    point = known.get(name)
    if point is None:
        names = ", ".join(known) or "none"
        raise InvalidParameter(f"{field}: {name!r} is not installed; there are: {names}", field=field)
    try:
        return point.load()
    except Exception as exc:
        raise InvalidParameter(f"{field}: {name!r} cannot be imported: {exc}", field=field) from exc


def load_selection(name: str, options: Mapping[str, Any] | None = None) -> AgentSelection:
    """Return an agent selection by name, made with options.

    Raises:
        InvalidParameter: it is not installed, an option is unknown, or it cannot be made.
    """
    cls = load(AGENT_SELECTIONS, name, field="selection")
    selection: AgentSelection = _made(cls, options or {}, "selection", name)
    return selection


def load_policy(name: str, selection: str, options: Mapping[str, Any] | None = None) -> SchedulingPolicy:
    """Return a scheduling policy by name, made with an agent selection and options.

    The option ``selection``, an object, holds the options of the agent selection.

    Raises:
        InvalidParameter: one of them is not installed, an option is unknown, or it cannot be made.
    """
    for_selection = (options or {}).get("selection") or {}
    if not isinstance(for_selection, Mapping):
        raise InvalidParameter(f"selection: give its options as an object, not {for_selection!r}", field="selection")
    arguments = {**(options or {}), "selection": load_selection(selection, for_selection)}
    policy: SchedulingPolicy = _made(load(SCHEDULING_POLICIES, name, field="policy"), arguments, "policy", name)
    return policy


def _made(cls: Any, arguments: Mapping[str, Any], field: str, name: str) -> Any:
    try:
        return cls(**arguments)
    except InvalidParameter:
        raise
    except Exception as exc:
        raise InvalidParameter(f"{field}: {name!r} cannot be made: {exc}", field=field) from exc

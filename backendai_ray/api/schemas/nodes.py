"""One node as the API shows it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from actors.contracts import AgentView, Holding, NodeDetail
from backendai_ray.api.schemas.sessions import iso
from backendai_ray.api.schemas.usage import NodeUsageView
from backendai_ray.core.devices import Device
from backendai_ray.core.machine import Nic, NumaNode, device_label, link_table
from backendai_ray.core.measurements import NodeUsage
from backendai_ray.core.slots import ResourceSlots


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class NumaNodeView(_Answer):
    """Cores and the memory next to them."""

    id: int
    socket: str
    cpus: list[int]
    memory_bytes: int
    distances: list[int] = Field(description="To each NUMA node; 10 is as near as can be.")

    @classmethod
    def of(cls, node: NumaNode) -> NumaNodeView:
        """Show a NUMA node."""
        return cls(
            id=node.id,
            socket=node.socket,
            cpus=list(node.cpus),
            memory_bytes=node.memory_bytes,
            distances=list(node.distances),
        )


class NicView(_Answer):
    """A network card."""

    name: str
    kind: str = Field(description="ethernet, infiniband or roce.")
    interface: str
    numa_node: int | None
    pcie: str = Field(description="The host bridge and the switches down to it.")
    speed_mbps: int = Field(description="0: not known.")
    is_up: bool

    @classmethod
    def of(cls, nic: Nic) -> NicView:
        """Show a network card."""
        return cls(
            name=nic.name,
            kind=nic.kind,
            interface=nic.interface,
            numa_node=nic.numa_node,
            pcie=nic.pcie,
            speed_mbps=nic.speed_mbps,
            is_up=nic.is_up,
        )


class DeviceView(_Answer):
    """A device that is given out."""

    slot: str
    id: str
    label: str = Field(description="Short, for people; the name in `links`.")
    capacity: int = Field(description="In the slot's units: 1000 for a core or an accelerator, bytes for memory.")
    numa_node: int | None
    model: str
    attributes: dict[str, str]

    @classmethod
    def of(cls, device: Device) -> DeviceView:
        """Show a device."""
        return cls(
            slot=device.slot,
            id=device.id,
            label=device_label(device),
            capacity=device.capacity,
            numa_node=device.numa_node,
            model=device.model,
            attributes=dict(device.attributes),
        )


class HoldingView(_Answer):
    """What one container holds there."""

    kernel_id: str
    session_id: str
    session_name: str
    access_key: str
    hostname: str
    status: str
    devices: dict[str, dict[str, int]] = Field(description="Units by slot and device.")

    @classmethod
    def of(cls, holding: Holding) -> HoldingView:
        """Show a holding."""
        allocation = holding.allocation
        slots = sorted({slot for slot, _, _ in allocation.parts})
        return cls(
            kernel_id=holding.kernel_id,
            session_id=holding.session_id,
            session_name=holding.session_name,
            access_key=holding.access_key,
            hostname=holding.hostname,
            status=holding.status,
            devices={slot: dict(allocation.devices(slot)) for slot in slots},
        )


class LinksView(_Answer):
    """How accelerators and network cards are linked, as `nvidia-smi topo -m` shows it."""

    names: list[str]
    rows: list[list[str]] = Field(description="A row per name: NV2 (two NVLinks), PIX, PXB, PHB, NODE, SYS, X.")


class NodeView(_Answer):
    """What the listing of nodes shows of each."""

    id: str
    status: str
    scaling_group: str
    architecture: str
    backend: str
    available_slots: dict[str, str]
    occupied_slots: dict[str, str]
    schedulable: bool
    message: str = Field(description="Why nothing new is placed there, when nothing is.")
    first_contact: str | None
    lost_at: str | None


class NodeDetailView(NodeView):
    """All that is known of a node."""

    labels: dict[str, str]
    notes: list[str] = Field(description="Why some device is not offered as it could be.")
    images: list[str] = Field(description="That can be used without a pull.")
    numa_nodes: list[NumaNodeView]
    nics: list[NicView]
    devices: list[DeviceView]
    links: LinksView
    holdings: list[HoldingView]
    usage: NodeUsageView | None = Field(description="As last measured; null while the agent does not answer.")

    @classmethod
    def of_detail(cls, detail: NodeDetail, usage: NodeUsage | None = None) -> NodeDetailView:
        """Show all of a node."""
        table = link_table(detail.devices, detail.machine.nics)
        return cls(
            **_facts(detail.view),
            labels=dict(detail.labels),
            notes=list(detail.notes),
            images=list(detail.images),
            numa_nodes=[NumaNodeView.of(node) for node in detail.machine.numa_nodes],
            nics=[NicView.of(nic) for nic in detail.machine.nics],
            devices=[DeviceView.of(device) for device in detail.devices],
            links=LinksView(names=list(table.names), rows=[list(row) for row in table.rows]),
            holdings=[HoldingView.of(holding) for holding in detail.holdings],
            usage=NodeUsageView.of(usage) if usage is not None else None,
        )


def _facts(view: AgentView) -> dict[str, Any]:
    return {
        "id": view.agent_id,
        "status": view.status.value,
        "scaling_group": view.resource_group,
        "architecture": view.architecture,
        "backend": view.backend,
        "available_slots": ResourceSlots(view.capacity).plain(),
        "occupied_slots": ResourceSlots(view.occupied).plain(),
        "schedulable": view.schedulable,
        "message": view.message,
        "first_contact": iso(view.first_contact),
        "lost_at": iso(view.lost_at),
    }

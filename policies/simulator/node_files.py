"""Node lists: the openb format, and our own JSON lines.

openb: CSV with ``sn,cpu_milli,memory_mib,gpu,model``; GPUs are given out in shares. Ours: an object a line,
``{"name": "n", "count": 60, "slots": {"cpu": 64, "mem": "256g", "cuda.device": 8}, "model": "A100"}``; with a ``count``
the nodes are ``n-0000`` and so on; ``model`` is optional.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from backendai_ray.core.devices import Device
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId, DeviceId
from backendai_ray.core.scheduling import Node
from backendai_ray.core.slots import CPU, MEM, UNITS_PER_COUNT, ResourceSlots, SlotKind, SlotName, slot_kind

from .openb import NODE_COLUMNS, OpenbNode, openb_nodes
from .reading import Line, header, is_json, json_lines

SHARES = SlotName("cuda.shares")
MODEL = "model"
"""The label that names a node's model of accelerator."""

_OURS = frozenset({"name", "count", "slots", "model"})
_MIB = 2**20
_MOST_NODES, _MOST_DEVICES = 100_000, 4096


def read_nodes(file: str, text: Iterable[str]) -> list[Node]:
    """Read a node list.

    Args:
        file: Its name, for errors.
        text: Its lines.

    Raises:
        InvalidParameter: it is of neither format; the message names the file, the line and the field.
    """
    lines = list(text)
    if is_json(lines):
        nodes = [node for line in json_lines(file, lines, _OURS) for node in _ours(line)]
    elif set(NODE_COLUMNS) <= set(header(lines)):
        nodes = [_openb(line, node) for line, node in openb_nodes(file, lines)]
    else:
        known = f"the columns {', '.join(NODE_COLUMNS)}, or JSON lines"
        raise InvalidParameter(
            f"{file}, line 1: the header is not that of a node list; expected {known}", field="nodes"
        )
    if not nodes:
        raise InvalidParameter(f"{file}: has no node", field="nodes")
    if len(nodes) > _MOST_NODES:
        raise InvalidParameter(f"{file}: {len(nodes)} nodes; at most {_MOST_NODES}", field="nodes")
    names: set[str] = set()
    for node in nodes:
        if node.agent_id in names:
            raise InvalidParameter(f"{file}: name: node {node.agent_id} is there twice", field="name")
        names.add(node.agent_id)
    return nodes


def _openb(line: Line, node: OpenbNode) -> Node:
    slots: dict[str, int] = {CPU: node.cpu_milli, MEM: node.memory_mib * _MIB, SHARES: node.gpus * UNITS_PER_COUNT}
    return _node(line, node.name, slots, node.model)


def _ours(line: Line) -> Iterator[Node]:
    name, count = line.text("name"), line.whole("count", 0)
    amounts = line.fields.get("slots")
    if not isinstance(amounts, dict):
        raise line.error("slots", "is missing, or no object of amounts by slot")
    if count > _MOST_NODES:
        raise line.error("count", f"at most {_MOST_NODES}")
    try:
        slots = ResourceSlots.parse(amounts, field="slots")
    except InvalidParameter as error:
        raise line.error("slots", error.message) from None
    for one in [f"{name}-{index:04}" for index in range(count)] or [name]:
        yield _node(line, one, slots, line.text("model", ""))


def _node(line: Line, name: str, slots: Mapping[str, int], model: str) -> Node:
    devices: list[Device] = []
    for slot, units in slots.items():
        kind = slot_kind(slot)
        if kind is SlotKind.BYTES:
            devices.append(Device(SlotName(slot), DeviceId("0"), units, 0))
            continue
        whole, rest = divmod(units, UNITS_PER_COUNT)
        if whole > _MOST_DEVICES:
            raise line.error(slot, f"{whole} in one node are more than any has")
        sizes = [UNITS_PER_COUNT] * whole + ([rest] if rest else [])
        devices += [Device(SlotName(slot), DeviceId(str(index)), size, 0) for index, size in enumerate(sizes)]
    labels = {MODEL: model} if model else {}
    return Node(agent_id=AgentId(name), architecture="", devices=tuple(devices), labels=labels)

"""The YAML description of accelerators that a machine does not have; see :mod:`.mock`."""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.slots import MEM, ResourceSlots, SlotKind, SlotName, parse_amount, slot_kind

_SETTING = "agent.devices.mock"

_WAY = r"^([^/,\s]+(/[^/,\s]+)*)?$"
_DeviceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]


class _Part(BaseModel, extra="forbid", frozen=True):
    pass


class MockDevice(_Part):
    """One accelerator."""

    id: _DeviceName
    numa_node: int | None = Field(None, ge=0, le=1023)
    socket: str = Field("", max_length=64, description="The CPU socket, where it is not the NUMA node.")
    pcie: str = Field(
        "",
        pattern=_WAY,
        description="The host bridge and the switches down to the device, joined by a slash.",
    )
    model: str = Field("", description="Where it differs from its group's.")
    memory: str = Field("", description="Where it differs from its group's.")

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, text: str) -> str:
        return _checked_size(text)


class MockLink(_Part):
    """NVLinks between every two of some devices."""

    between: tuple[_DeviceName, ...] = Field(min_length=2)
    lanes: int = Field(ge=1, le=18)


class MockAccelerators(_Part):
    """The accelerators of one slot."""

    slot: str = Field(description="Given out whole, or in hundredths when it ends in .shares.")
    model: str = ""
    memory: str = Field("", description="Of each device, such as 16g.")
    devices: tuple[MockDevice, ...] = Field(min_length=1)
    nvlink: tuple[MockLink, ...] = ()

    @field_validator("slot")
    @classmethod
    def _slot_is_an_accelerators(cls, name: str) -> str:
        try:
            ResourceSlots.parse({name: 0})
        except InvalidParameter:
            raise ValueError(f"{name!r} is no slot name; give one such as cuda.device") from None
        if slot_kind(name) not in (SlotKind.WHOLE, SlotKind.SHARES):
            raise ValueError(f"{name} is no accelerator")
        return name

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, text: str) -> str:
        return _checked_size(text)

    @model_validator(mode="after")
    def _links_join_devices_that_are_there(self) -> MockAccelerators:
        known = {device.id for device in self.devices}
        seen: set[frozenset[str]] = set()
        for number, link in enumerate(self.nvlink):
            for name in link.between:
                if name not in known:
                    raise ValueError(f"nvlink.{number}.between: there is no device {name}")
            for one, other in combinations(link.between, 2):
                pair = frozenset((one, other))
                if len(pair) == 1 or pair in seen:
                    raise ValueError(f"nvlink.{number}.between: {one} and {other} are the same, or linked already")
                seen.add(pair)
        return self

    def lanes(self) -> dict[str, dict[str, int]]:
        """Return the NVLink lanes by device and peer."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for link in self.nvlink:
            for one, other in combinations(link.between, 2):
                found[one][other] = found[other][one] = link.lanes
        return found

    def memory_of(self, device: MockDevice) -> int:
        """Return a device's memory in bytes, 0 when it is not said."""
        text = device.memory or self.memory
        return parse_amount(MEM, text) if text else 0


class MockNic(_Part):
    """One network card."""

    id: _DeviceName
    kind: Literal["ethernet", "infiniband", "roce"] = "infiniband"
    numa_node: int | None = Field(None, ge=0, le=1023)
    pcie: str = Field("", pattern=_WAY, description="As of devices.")
    speed_mbps: int = Field(0, ge=0)


class MockDescription(_Part):
    """All accelerators of a machine, and the network cards beside them."""

    accelerators: tuple[MockAccelerators, ...] = Field(min_length=1)
    nics: tuple[MockNic, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> MockDescription:
        seen: set[tuple[str, str]] = set()
        for number, group in enumerate(self.accelerators):
            for place, device in enumerate(group.devices):
                if (group.slot, device.id) in seen:
                    raise ValueError(f"accelerators.{number}.devices.{place}.id: {device.id} is there already")
                seen.add((group.slot, device.id))
        return self

    def slots(self) -> tuple[SlotName, ...]:
        """Return the slots there are, sorted."""
        return tuple(sorted({SlotName(group.slot) for group in self.accelerators}))


def _checked_size(text: str) -> str:
    if text:
        try:
            parse_amount(MEM, text)
        except InvalidParameter:
            raise ValueError(f"{text[:40]!r} is no size; give one such as 16g") from None
    return text


def shipped_descriptions() -> tuple[str, ...]:
    """Return the names of the descriptions that come with us."""
    folder = files("actors.agent.devices").joinpath("descriptions")
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_description(name: str) -> MockDescription:
    """Read a description.

    Args:
        name: A path that ends in ``.yaml`` or ``.yml``, or the name of a shipped one.

    Raises:
        InvalidParameter: there is none, it is no YAML, or a field is wrong; the message names the field.
    """
    if name.endswith((".yaml", ".yml")):
        source = Path(name)
    elif name in shipped_descriptions():
        source = Path(str(files("actors.agent.devices").joinpath("descriptions", f"{name}.yaml")))
    else:
        there = ", ".join(shipped_descriptions())
        raise _wrong(f"{name!r} is neither a YAML file nor one that is shipped: {there}")
    try:
        content = yaml.safe_load(source.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _wrong(f"{source} cannot be read: {error}") from error
    try:
        return MockDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise _wrong(f"{source}: {where}: {what}" if where else f"{source}: {what}") from None


def _wrong(message: str) -> InvalidParameter:
    return InvalidParameter(f"{_SETTING}: {message}", field=_SETTING)

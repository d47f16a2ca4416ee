"""What every device plug-in must do: inherit :class:`DevicePluginConformance` in a test and say how to make yours.

    from actors.agent.testing.device_conformance import DevicePluginConformance

    class TestMine(DevicePluginConformance):
        def make_plugin(self):
            return MyPlugin(AgentSettings())

It needs pytest, and a machine that has such devices, or a plug-in that is told of some.
"""

from __future__ import annotations

import pickle

from actors.agent.devices.base import DevicePlugin, Grant
from backendai_ray.core.allocator import DeviceMap
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.ids import DeviceId, KernelId
from backendai_ray.core.links import NVLINK, PCIE, parse_nvlink
from backendai_ray.core.reports import DeviceTable
from backendai_ray.core.slots import MAX_UNITS, UNITS_PER_COUNT, ResourceSlots, SlotKind, SlotName, slot_kind
from backendai_ray.core.topology import natural_key


class DevicePluginConformance:
    """Inherit it and say how to make the plug-in."""

    def make_plugin(self) -> DevicePlugin:
        """Return a fresh plug-in, as after a restart of the agent; each time of the same hardware."""
        raise NotImplementedError

    # ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────

    def test_it_has_a_name_and_slots(self) -> None:
        plugin = self.make_plugin()
        assert plugin.name
        assert len(set(plugin.slots)) == len(plugin.slots) > 0
        ResourceSlots.parse(dict.fromkeys(plugin.slots, 0))

    def test_it_finds_devices_of_its_slots_and_no_others(self) -> None:
        plugin = self.make_plugin()
        devices = plugin.devices()
        assert devices, "the suite needs a machine that has some"
        assert {device.slot for device in devices} <= set(plugin.slots)

    def test_ids_are_unique_and_sorted(self) -> None:
        keys = [(device.slot, natural_key(device.id)) for device in self.make_plugin().devices()]
        assert keys == sorted(keys)
        assert len({(device.slot, device.id) for device in self.make_plugin().devices()}) == len(keys)

    def test_the_same_hardware_is_described_alike_after_a_restart(self) -> None:
        plugin = self.make_plugin()
        first = list(plugin.devices())
        assert list(plugin.devices()) == first
        assert list(self.make_plugin().devices()) == first

    def test_capacities_are_amounts_that_can_be_given_out(self) -> None:
        for device in self.make_plugin().devices():
            assert 0 < device.capacity < MAX_UNITS, device
            if slot_kind(device.slot) is SlotKind.WHOLE:
                assert device.capacity == UNITS_PER_COUNT, f"{device.id} is given out whole, so it counts as one"
            assert device.numa_node is None or device.numa_node >= 0, f"{device.id}: an unknown NUMA node is None"

    def test_devices_travel_in_a_report(self) -> None:
        devices = tuple(self.make_plugin().devices())
        assert DeviceTable.of(devices).devices() == devices
        assert pickle.loads(pickle.dumps(devices)) == devices
        for device in devices:
            assert all(isinstance(text, str) for one in device.attributes.items() for text in one), device

    def test_links_name_devices_that_are_there_and_agree_from_both_sides(self) -> None:
        devices = self.make_plugin().devices()
        lanes = {(d.slot, str(d.id)): parse_nvlink(d.attributes.get(NVLINK, "")) for d in devices}
        for device in devices:
            text = device.attributes.get(NVLINK, "")
            assert len(parse_nvlink(text)) == len([part for part in text.split(",") if part]), f"unreadable: {text}"
            for peer, count in parse_nvlink(text).items():
                assert peer != device.id
                assert lanes[device.slot, peer][device.id] == count, f"{device.id} and {peer} disagree"
            way = device.attributes.get(PCIE, "")
            assert not way or all(way.split("/")), f"a part of the way is empty: {way}"

    # ── how much is in use ────────────────────────────────────────────────────────────────────────────────────────

    def test_usage_is_of_its_devices_and_possible(self) -> None:
        plugin = self.make_plugin()
        names = {(device.slot, device.id) for device in plugin.devices()}
        for usage in plugin.usage():
            assert (usage.slot, usage.id) in names
            assert usage.utilization is None or 0 <= usage.utilization <= 1, usage
            assert (usage.memory_used or 0) >= 0, usage
        assert isinstance(plugin.note(), str)
        assert len({nic.name for nic in plugin.nics()}) == len(plugin.nics())

    # ── how it is given out ───────────────────────────────────────────────────────────────────────────────────────

    def test_who_has_nothing_of_ours_is_granted_nothing(self) -> None:
        plugin = self.make_plugin()
        assert Grant.join([plugin.grant(Allocation())]) == Grant()
        foreign = Allocation.of([(SlotName("conformance.device"), DeviceId("0"), UNITS_PER_COUNT)])
        assert Grant.join([plugin.grant(foreign)]) == Grant()

    def test_every_device_can_be_granted_alone(self) -> None:
        plugin = self.make_plugin()
        for device in plugin.devices():
            for units in _amounts(device):
                allocation = Allocation.of([(device.slot, device.id, units)])
                _check(plugin.grant(allocation))
                assert plugin.grant(allocation) != Grant(), f"{device.id}: the kernel would learn nothing of it"

    def test_everything_can_be_granted_together(self) -> None:
        plugin = self.make_plugin()
        room = DeviceMap(tuple(plugin.devices()))
        found = room.allocate(room.free())
        assert isinstance(found, Allocation), found
        room.hold(KernelId("k"), found)
        _check(plugin.grant(found))

    def test_a_grant_is_the_same_each_time_and_after_a_restart(self) -> None:
        """A kernel whose start is repeated, perhaps by the agent's next process, must get what it got."""
        plugin = self.make_plugin()
        allocation = Allocation.of((d.slot, d.id, d.capacity) for d in plugin.devices())
        first = Grant.join([plugin.grant(allocation)])
        assert Grant.join([plugin.grant(allocation)]) == first
        assert Grant.join([self.make_plugin().grant(allocation)]) == first


def _amounts(device: Device) -> set[int]:
    smallest = {SlotKind.BYTES: 1, SlotKind.COUNT: 1, SlotKind.SHARES: 10, SlotKind.WHOLE: device.capacity}
    return {smallest[slot_kind(device.slot)], device.capacity}


def _check(grant: Grant) -> None:
    assert grant.cpu_units >= 0
    assert grant.memory_bytes >= 0
    assert all(core >= 0 for core in grant.cores)
    for name, text in (*grant.environ.items(), *grant.defaults.items()):
        assert name.isascii(), name
        assert name.replace("_", "a").isalnum(), f"no name for a variable: {name}"
        assert not name.startswith("BACKENDAI_"), f"{name} is ours to set"
        assert isinstance(text, str), f"{name} must be text"
        assert "\0" not in text, f"{name} holds a NUL"
    for path in (*grant.device_paths, *(path for request in grant.device_requests for path in request.device_paths)):
        assert path.startswith("/dev/"), f"no device file: {path}"
    for mount in grant.mounts:
        assert mount.source.startswith("/"), f"no absolute path: {mount.source}"
        assert mount.target.startswith("/"), f"no absolute path: {mount.target}"
    for request in grant.device_requests:
        assert request.driver, "a request names its driver"
        assert request.device_ids, "a request for no devices"

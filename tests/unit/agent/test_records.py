"""Every record that is persisted comes back as it was."""

from __future__ import annotations

import pytest

from backendai_ray import records
from backendai_ray.core.devices import Allocation
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, SessionId
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import Kernel, KernelSpec, Session, SessionSpec, SessionType, Status
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

ALLOCATION = Allocation.of([(CPU, DeviceId("0"), 500), (MEM, DeviceId("root"), 2**31)])


def session() -> Session:
    spec = SessionSpec(
        id=SessionId("s"),
        name="n",
        access_key=AccessKey("AK"),
        image="python",
        slots=ResourceSlots.parse({"cpu": "0.5", "mem": "2g"}),
        environ={"A": "ü"},
        depends_on=(SessionId("x"),),
    )
    kernel = Kernel(
        id=KernelId("k"), role="main", index=1, allocation=ALLOCATION, agent_id=AgentId("a"), status=Status.RUNNING
    )
    return Session(spec=spec, kernels=(kernel,), started_at=1.5)


def spec() -> KernelSpec:
    return KernelSpec(
        kernel_id=KernelId("k"),
        session_id=SessionId("s"),
        session_name="n",
        access_key=AccessKey("AK"),
        session_type=SessionType.BATCH,
        image="python",
        architecture="",
        role="main",
        index=1,
        hostname="main1",
        cluster_hosts=("main1", "sub1"),
        slots=ResourceSlots({"cpu": 1000}),
        allocation=ALLOCATION,
        shmem_bytes=1,
        environ={},
        preopen_ports=(80,),
    )


@pytest.mark.parametrize(
    "record",
    [
        session(),
        spec(),
        KernelFact(kernel_id=KernelId("k"), session_id="s", status=Status.TERMINATED, log_tail=b"\xff\0", exit_code=1),
    ],
    ids=lambda r: type(r).__name__,
)
def test_round_trip(record: object) -> None:
    assert records.decode(records.encode(record), type(record)) == record
    assert records.from_plain(records.to_plain(record), type(record)) == record


def test_missing_field_takes_its_default_and_unknown_field_is_ignored() -> None:
    plain = records.to_plain(spec())
    del plain["attempt"]
    plain["from_the_future"] = 1
    assert records.from_plain(plain, KernelSpec).attempt == 1


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"kernel_id": 3}', b'{"kernel_id":"k","session_id":"s","status":"x"}']
)
def test_damaged_data_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(records.DecodeError):
        records.decode(data, KernelFact)


def test_negative_and_fractional_amounts_are_refused() -> None:
    for amount in (-1, 1.5, True):
        with pytest.raises(records.DecodeError):
            records.from_plain({"cpu": amount}, ResourceSlots)


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(TypeError):
        records.encode(object())

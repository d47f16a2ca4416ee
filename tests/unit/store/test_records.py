"""What goes into the store and how it is written down."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError

from backendai_ray.core.errors import InvalidParameter, StoreUnavailable
from backendai_ray.core.ids import AccessKey
from backendai_ray.store import Batch, KeypairRecord
from backendai_ray.store.engines import Location
from backendai_ray.store.faults import as_backend_error

ONE = KeypairRecord(access_key=AccessKey("A"), secret_key="s")
TWO = KeypairRecord(access_key=AccessKey("B"), secret_key="s")


def test_batches_add_up_in_order() -> None:
    assert Batch(keypairs=(ONE,)) + Batch(keypairs=(TWO,)) == Batch(keypairs=(ONE, TWO))
    assert not Batch() + Batch()
    assert Batch(keypairs=(ONE,))


@pytest.mark.parametrize(
    ("text", "driver", "said"),
    [
        ("sqlite:////var/lib/x/store.db", "sqlite", "the store file /var/lib/x/store.db"),
        ("postgresql://u:hush@db:5433/bai", "postgresql+psycopg", "the database bai at db:5433"),
        ("postgres://u@db/bai", "postgresql+psycopg", "the database bai at db"),
        ("postgresql+asyncpg://db/bai", "postgresql+psycopg", "the database bai at db"),
        ("postgresql:///bai", "postgresql+psycopg", "the database bai at the local socket"),
    ],
)
def test_locations(text: str, driver: str, said: str) -> None:
    location = Location.parse(text)
    assert location.url.drivername == driver
    assert str(location) == said


@pytest.mark.parametrize("text", ["", "x", "sqlite://", "sqlite:///:memory:", "mysql://db/bai", "sqlite:///file:x?a=b"])
def test_locations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^store\.url: "):
        Location.parse(text)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("database or disk is full", "the disk under the store is full; free some space, nothing was changed"),
        ("file is not a database", "here is not a store, or it is damaged; restore it from a backup or move it away"),
        ("connection refused", "here does not answer: connection refused"),
        ("something new", "here failed: something new"),
    ],
)
def test_every_fault_is_a_sentence(said: str, sentence: str) -> None:
    for kind in (OperationalError, DatabaseError):
        error = as_backend_error(kind("SELECT 1", {}, Exception(said)), "here")
        assert isinstance(error, StoreUnavailable)
        assert error.message == sentence

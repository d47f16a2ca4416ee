"""The reference pages name everything there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from backendai_ray.bus import ALL_EVENT_NAMES, PULL_PROGRESS, DomainEvent
from backendai_ray.core.sessions import Status
from backendai_ray.store import tables

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def _quoted(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (REFERENCE / page).read_text()))


def test_every_event_is_documented_and_no_other() -> None:
    quoted = _quoted("events.md")
    assert set(ALL_EVENT_NAMES) == {name for name in quoted if re.fullmatch(r"(session|kernel)_[a-z]+", name)} - {
        field.name for field in fields(DomainEvent)
    }
    assert {field.name for field in fields(DomainEvent)} <= quoted
    assert {f"bai:{PULL_PROGRESS}", "bai:events", "bai:events:store", "bai:dead:GROUP"} <= quoted
    for status in Status:
        assert f"| {status.value} |" in (REFERENCE / "events.md").read_text()


def test_every_table_and_index_is_documented_and_no_other() -> None:
    quoted = _quoted("store.md")
    indexes = {str(index.name) for table in tables.metadata.tables.values() for index in table.indexes}
    assert set(tables.metadata.tables) <= quoted
    assert indexes == {name for name in quoted if re.match(r"(ix|uq)_", name)}

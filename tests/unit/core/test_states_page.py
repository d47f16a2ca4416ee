"""The page about session states says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from backendai_ray.config import ManagerSettings
from backendai_ray.core.lifecycle import MAX_ATTEMPTS, OWNERS, TRANSITIONS
from backendai_ray.core.sessions import TERMINAL, Status

PAGE = (Path(__file__).parents[3] / "docs/architecture/session-states.md").read_text()


def test_the_diagram_shows_every_move_and_no_other() -> None:
    drawn = set(re.findall(r"^    (\S+) --> (\S+)$", PAGE, re.MULTILINE))
    moves = {(before.value, after.value) for before, all_after in TRANSITIONS.items() for after in all_after}
    ends = {(status.value, "[*]") for status in TERMINAL}
    assert drawn == moves | ends | {("[*]", Status.PENDING.value)}


def test_every_state_has_its_row_with_its_owner() -> None:
    rows = re.findall(r"^\| `([A-Z]+)` \| [^|]+ \| (\S+) \|", PAGE, re.MULTILINE)
    assert dict(rows) == {status.value: OWNERS.get(status, "–") for status in Status}


def test_settings_are_named_with_their_defaults() -> None:
    for name, default in re.findall(r"`(\w+_s)` \((\d+) s\)", PAGE):
        assert float(default) == ManagerSettings.model_fields[name].default, name
    for name in re.findall(r"`(\w+_s)`", PAGE):
        assert name in ManagerSettings.model_fields


def test_the_number_of_attempts() -> None:
    assert MAX_ATTEMPTS == 3
    assert "After three attempts" in PAGE

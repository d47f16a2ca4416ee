"""What the process behind ``bai up`` finds out before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from backendai_ray.config import load_settings
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.daemon import run_cluster


async def test_devices_that_cannot_be_are_told_before_anything_is_started(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, agent={"devices": {"mock": "no-such-box"}})
    told: list[str] = []
    with pytest.raises(InvalidParameter, match="no-such-box"):
        await run_cluster(settings, lambda kind, _: told.append(kind))
    assert told == []

"""A Manager among fakes, checked for its invariants at the end of every test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from actors.testing import FakeAgent, FakeCluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Two nodes of four cores each."""
    one = await FakeCluster(FakeAgent("a1"), FakeAgent("a2")).start()
    yield one
    await one.check()
    await one.kill()

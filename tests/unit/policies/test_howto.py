"""The policy in the how-to is a real one: it passes the suite that it tells authors to inherit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backendai_ray import plugins
from backendai_ray.core.scheduling import RefusalCode, SchedulingPolicy
from policies.selection import Concentrated
from policies.testing import PolicyConformance

DOCS = Path(__file__).parents[3] / "docs"


def example() -> dict[str, Any]:
    page = (DOCS / "howto" / "write-a-policy.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(code, "write-a-policy.md", "exec"), names)
    return names


class TestSmallestFirst(PolicyConformance):
    max_examples = 20

    def make_policy(self) -> SchedulingPolicy:
        policy: SchedulingPolicy = example()["SmallestFirst"](selection=Concentrated())
        return policy


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_reason_is_documented(code: RefusalCode) -> None:
    assert f"`{code}`" in (DOCS / "architecture" / "scheduling.md").read_text()


def test_every_entry_point_group_of_scheduling_is_documented() -> None:
    page = (DOCS / "howto" / "write-a-policy.md").read_text()
    assert plugins.SCHEDULING_POLICIES in page
    assert plugins.AGENT_SELECTIONS in page

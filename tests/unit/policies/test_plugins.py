"""Finding plug-ins by name."""

from __future__ import annotations

import pytest

from backendai_ray import plugins
from backendai_ray.core.errors import InvalidParameter
from policies.fifo import FifoPolicy
from policies.selection import Dispersed


def test_the_built_in_ones_are_found_like_any_other() -> None:
    assert {"fifo", "lifo", "drf", "backfill"} <= set(plugins.installed(plugins.SCHEDULING_POLICIES))
    assert {"concentrated", "dispersed"} <= set(plugins.installed(plugins.AGENT_SELECTIONS))
    assert isinstance(plugins.load_policy("fifo", "dispersed", {"strict": False}), FifoPolicy)
    assert isinstance(plugins.load_selection("dispersed"), Dispersed)


@pytest.mark.parametrize(
    ("policy", "selection", "options", "words"),
    [
        ("lottery", "concentrated", {}, r"policy: 'lottery' is not installed; there are: .*fifo"),
        ("fifo", "nearest", {}, r"selection: 'nearest' is not installed; there are: concentrated, dispersed"),
        ("fifo", "concentrated", {"depth": 3}, r"options.depth: fifo knows only"),
    ],
)
def test_what_is_wrong_is_named(policy: str, selection: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        plugins.load_policy(policy, selection, options)


def test_all_that_is_offered_is_there() -> None:
    assert all(hasattr(plugins, name) for name in plugins.__all__)

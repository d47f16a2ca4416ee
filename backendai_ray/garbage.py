"""The garbage collector of a long-lived process with a large memory: it runs seldom, and not over what never ends."""

from __future__ import annotations

import gc

_THRESHOLDS = (20_000, 20, 50)
"""By default it runs after 700 new objects; and over everything, a tenth of a second where there are thousands of
sessions and nodes, hundreds of times as often as this."""


def collect_seldom() -> None:
    """Collect less often from now on, and leave out what is there already: modules, and what was loaded at the start.

    What is no part of a cycle is freed at once as ever; only cycles wait.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

"""What to do when a part of the machine that a test needs is missing: an error where it must be there, else a skip.

Root can install everything (``make test`` does), and CI is root, so there a missing part is a failure and never a
silent gap. Everybody else gets skips, which the summary lists by reason.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

SKIP_PREFIX = "could not run here: "


def everything_must_be_there() -> bool:
    """Whether a missing part is a failure."""
    return os.geteuid() == 0 or os.environ.get("CI", "").lower() in ("1", "true")


def missing(what: str) -> NoReturn:
    """Fail or skip the requesting test; ``what`` says in a few words which part is not there."""
    if everything_must_be_there():
        pytest.fail(f"{what}. As root, `make system` installs and starts it.", pytrace=False)
    pytest.skip(f"{SKIP_PREFIX}{what}")

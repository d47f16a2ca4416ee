"""Which mirror is taken out of apt's configuration."""

from __future__ import annotations

import pytest

from backendai_ray.images.debian import choose_mirror

SECURITY = "http://mirror.example/debian-security/ bookworm-security main"
UPDATES = "http://mirror.example/debian/ bookworm-updates main"


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        ([SECURITY, UPDATES, "http://near.example/deb/ bookworm main"], "http://near.example/deb/"),
        (
            ["http://vendor.example/apt/ stable main", "http://a.example/debian/ trixie main"],
            "http://a.example/debian/",
        ),
        (
            ["http://a.example/debian bookworm contrib", "http://b.example/debian bookworm main"],
            "http://b.example/debian",
        ),
        ([SECURITY, "http://vendor.example/apt/ stable main"], None),
        (["", "half a line"], None),
        ([], None),
    ],
    ids=["ours-not-security", "another-release", "main-only", "no-archive", "rubbish", "nothing"],
)
def test_choose_mirror(lines: list[str], chosen: str | None) -> None:
    assert choose_mirror("\n".join(lines)) == chosen

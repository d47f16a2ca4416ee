"""Which paths a user may name inside a session's folder."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter, PathOutsideSession
from backendai_ray.core.paths import parse_session_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a.txt", "a.txt"),
        ("a/b/../c", "a/b/../c"),
        (".", "."),
        ("/home/work", "."),
        ("/home/work/data/x", "data/x"),
        ("./x", "x"),
        ("ü/☃", "ü/☃"),
        ("a//b", "a/b"),
    ],
)
def test_inside(text: str, path: str) -> None:
    assert parse_session_path(text) == PurePosixPath(path)


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "/home/work/../x",
        "/home/workshop",
        "/",
        "/home",
        "a/../..",
        "//home/work/../..",
    ],
)
def test_outside(text: str) -> None:
    with pytest.raises(PathOutsideSession):
        parse_session_path(text)


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 1025, "ü" * 513])
def test_unusable(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_session_path(text)


@given(st.text(st.sampled_from("ab./"), min_size=1, max_size=20))
def test_what_is_let_through_never_climbs_out(text: str) -> None:
    try:
        path = parse_session_path(text)
    except (PathOutsideSession, InvalidParameter):
        return
    assert not path.is_absolute()
    place: list[str] = []
    for part in path.parts:
        if part == "..":
            assert place, text
            place.pop()
        else:
            place.append(part)

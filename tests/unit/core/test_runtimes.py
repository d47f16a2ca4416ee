"""Which runtime a session gets."""

from __future__ import annotations

import pytest

from backendai_ray.core.errors import InvalidParameter, UnsupportedByImage
from backendai_ray.core.runtimes import Runtime, choose_runtime, offered_runtimes, parse_runtime

R = Runtime(name="ir", language="R", title="R")
OFFERED = offered_runtimes(has_python=True, has_shell=True, kernels=[R])


@pytest.mark.parametrize(
    ("asked", "label", "chosen"),
    [
        ("", "", "python"),
        ("", "python", "python"),
        ("", "r", "ir"),
        ("", "ir", "ir"),
        ("", "something else", "python"),
        ("shell", "r", "shell"),
        ("ir", "", "ir"),
    ],
)
def test_the_one_asked_for_or_the_images_default(asked: str, label: str, chosen: str) -> None:
    assert choose_runtime(asked, label, OFFERED, image="i") == chosen


def test_what_the_image_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(UnsupportedByImage, match="no runtime 'cobol'; it has: python, shell, ir"):
        choose_runtime("cobol", "", OFFERED, image="i")
    without_python = offered_runtimes(has_python=False, has_shell=True, kernels=[R])
    assert choose_runtime("", "r", without_python, image="i") == "shell"
    with pytest.raises(UnsupportedByImage, match="it has: none"):
        choose_runtime("ir", "", (), image="i")


def test_names() -> None:
    assert parse_runtime(" IR ") == "ir"
    assert parse_runtime(None) == ""
    for text in ("a b", "x" * 65, "../x"):
        with pytest.raises(InvalidParameter, match="runtime:"):
            parse_runtime(text)

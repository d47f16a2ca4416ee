"""What cells of code are run by in an image: the built-in Python and shell, and the image's Jupyter kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backendai_ray.core.errors import InvalidParameter, UnsupportedByImage

PYTHON: Final = "python"
SHELL: Final = "shell"
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime of an image."""

    name: str
    """``python``, ``shell``, or the name of a kernelspec, such as ``ir``."""
    language: str = ""
    """As the kernelspec says it, such as ``R``."""
    title: str = ""
    """For people."""


BUILT_IN: Final = (
    Runtime(name=PYTHON, language="python", title="Python"),
    Runtime(name=SHELL, language="sh", title="Shell"),
)


def parse_runtime(text: str | None) -> str:
    """Return a runtime's name in lower case; empty stands for the image's default.

    Raises:
        InvalidParameter: it cannot be one.
    """
    name = (text or "").strip().lower()
    if name and not _NAME.fullmatch(name):
        raise InvalidParameter(
            f"runtime: {name[:80]!r} is no runtime's name; `bai runtimes IMAGE` lists those of an image",
            field="runtime",
        )
    return name


def offered_runtimes(*, has_python: bool, has_shell: bool, kernels: Sequence[Runtime] = ()) -> tuple[Runtime, ...]:
    """Return the runtimes of an image; Jupyter kernels need the runner, and so a Python 3."""
    python, shell = BUILT_IN
    built_in = (*((python,) if has_python else ()), *((shell,) if has_shell else ()))
    return (*built_in, *kernels) if has_python else built_in


def choose_runtime(asked: str, label: str, offered: Sequence[Runtime], *, image: str) -> str:
    """Return the runtime that a session gets.

    Args:
        asked: What its owner asked for; empty for the image's default.
        label: The image's ``ai.backend.runtime-type``; followed where it is the name or the language of a runtime.
        offered: The runtimes of the image, the general default first.
        image: For the message.

    Raises:
        UnsupportedByImage: the image does not have the runtime; the message names those it has.
    """
    names = [runtime.name for runtime in offered]
    if asked and asked not in names:
        there = ", ".join(names) or "none"
        raise UnsupportedByImage(f"the image {image!r} has no runtime {asked!r}; it has: {there}", field="runtime")
    if asked:
        return asked
    label = label.lower()
    if label in names:
        return label
    by_language = [runtime.name for runtime in offered if label and runtime.language.lower() == label]
    return (by_language or names or [PYTHON])[0]

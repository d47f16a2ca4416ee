"""Completion on the live namespace."""

from __future__ import annotations

MAX_MATCHES = 500

MYPY = False
if MYPY:
    from typing import Any


def matches(code: str, namespace: dict[str, Any]) -> list[str]:
    """Return what the name at the end of *code* may become, sorted; attributes with what stands before the dot."""
    import re

    line = code.rpartition("\n")[2]
    imported = re.match(r"\s*(?:from|import)\s+(?:\w+\s*,\s*)*([\w.]*)$", line)
    if imported:
        return _modules(imported.group(1))
    found = re.search(r"[\w.]*$", line)
    text = found.group(0) if found else ""
    if not text or text[0].isdigit():
        return []
    from rlcompleter import Completer

    completer = Completer(namespace)
    names = []  # type: list[str]
    while len(names) < MAX_MATCHES:
        name = _complete(completer, text, len(names))
        if name is None:
            break
        names.append(name)
    # A callable comes with an opening parenthesis (or a pair), a keyword with a space; callers want the name alone.
    return sorted({name.rstrip(" ():") for name in names})


def _complete(completer: Any, text: str, index: int) -> str | None:
    try:
        name: str | None = completer.complete(text, index)
    except Exception:
        return None  # what stands before the dot cannot be evaluated
    return name


def _modules(prefix: str) -> list[str]:
    import pkgutil
    import sys

    package, dot, start = prefix.rpartition(".")
    if not dot:
        names = {info.name for info in pkgutil.iter_modules()} | set(sys.builtin_module_names)
    else:
        paths = getattr(sys.modules.get(package), "__path__", None)
        names = {info.name for info in pkgutil.iter_modules(paths)} if paths else set()
    return sorted(package + dot + name for name in names if name.startswith(start))[:MAX_MATCHES]

"""Finds the Jupyter kernels that an image has: their kernelspecs, where Jupyter itself would look for them.

This file is also run by itself, inside an image, by whoever wants to know what the image has; so it imports nothing
of the package.
"""

from __future__ import annotations

import json
import os
import sys

MAX_SPEC_BYTES = 1 << 20
MAX_SPECS = 64
BUILT_IN = ("python", "shell")
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")

MYPY = False
if MYPY:
    from typing import Any


def find_kernelspecs() -> dict[str, dict[str, Any]]:
    """Return the usable kernelspecs by name (in lower case), the first found of a name; damaged ones are left out.

    Each has ``argv``, ``env``, ``title``, ``language``, ``interrupt_mode`` and ``folder``.
    """
    found: dict[str, dict[str, Any]] = {}
    for root in _roots():
        try:
            names = sorted(os.listdir(root))
        except OSError:
            continue
        for entry in names:
            name = entry.lower()
            if name in found or name in BUILT_IN or not is_name(name) or len(found) >= MAX_SPECS:
                continue
            spec = _read(os.path.join(root, entry))
            if spec is not None:
                found[name] = spec
    return found


def is_name(name: str) -> bool:
    """Return whether a runtime may be called that."""
    return 0 < len(name) <= 64 and not set(name) - _ALLOWED


def _roots() -> list[str]:
    """Where kernelspecs are, the most particular first (as ``jupyter --paths`` says it, and beside the commands)."""
    data = [folder for folder in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if folder]
    data.append(os.path.join(os.path.expanduser("~"), ".local", "share", "jupyter"))
    prefixes = [sys.prefix, "/opt/conda", "/usr/local", "/usr"]
    commands = os.environ.get("PATH", "").split(os.pathsep)
    prefixes[1:1] = [os.path.dirname(folder) for folder in commands if os.path.basename(folder) == "bin"]
    data.extend(os.path.join(prefix, "share", "jupyter") for prefix in prefixes)
    return [os.path.join(folder, "kernels") for folder in dict.fromkeys(data)]


def _read(folder: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(folder, "kernel.json"), "rb") as file:
            said = json.loads(file.read(MAX_SPEC_BYTES).decode("utf-8"))
        argv = [str(word) for word in said["argv"]]
        env = {str(name): str(value) for name, value in (said.get("env") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not argv:
        return None
    return {
        "argv": argv,
        "env": env,
        "title": str(said.get("display_name") or ""),
        "language": str(said.get("language") or ""),
        "interrupt_mode": str(said.get("interrupt_mode") or "signal"),
        "folder": folder,
    }


def one_line(text: str) -> str:
    """Make a text fit for a table of lines and tabs."""
    return " ".join(text.split())[:100].encode("ascii", "backslashreplace").decode()


if __name__ == "__main__":
    for found_name, found_spec in sorted(find_kernelspecs().items()):
        sys.stdout.write(
            "RUNTIME\t%s\t%s\t%s\n" % (found_name, one_line(found_spec["language"]), one_line(found_spec["title"]))
        )

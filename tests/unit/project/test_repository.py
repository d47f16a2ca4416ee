"""The repository is about the project: nothing in it knows the machine or the place where it was written."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

# Written apart, so that this file does not name them either.
FOREIGN = {
    "a path of the machine it was written on": r"(?<![\w}>.])/wo"
    r"rk/|/root/\.py"
    r"env|/opt/(py"
    r"pi|wh"
    r"eels)|/tmp/te"
    r"am",
    "a package registry's host": r"\bpy"
    r"pi\.org|files\.python"
    r"hosted|deb\.deb"
    r"ian\.org|registry\.np"
    r"mjs|registry-1\.doc"
    r"ker",
    "a tool of the workplace": r"\bfarm-(bench|studio)|\bissues (show|list)\b",
}


def _tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_names(what: str) -> None:
    pattern = re.compile(FOREIGN[what])
    found = []
    for path in _tracked_files():
        if not path.is_file():
            continue  # deleted in the working tree
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {match[0]}")
    assert not found, f"{what}:\n" + "\n".join(found)


def _classes(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield node.name, [ast.unparse(base).rpartition(".")[2] for base in node.bases]


def test_there_is_one_error_tree() -> None:
    """Only classes in the one module are rebuilt from their code on the client's side, and documented."""
    home = REPOSITORY / "backendai_ray" / "core" / "errors.py"
    tree = {name for name, _bases in _classes(home)}
    elsewhere = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for package in ("backendai_ray", "actors", "policies", "storage", "proxy")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if path != home
        for name, bases in _classes(path)
        if tree.intersection(bases)
    ]
    assert elsewhere == []

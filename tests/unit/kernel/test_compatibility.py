"""The runner must be understood by every Python from 3.7 on and import nothing slow at its start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import backendai_ray.kernel as kernel

FOLDER = Path(kernel.__file__).parent
SOURCES = sorted([*FOLDER.glob("bai_runner/*.py"), FOLDER / "runner_main.py"])
NEW_METHODS = {"removeprefix", "removesuffix", "is_relative_to", "waitstatus_to_exitcode", "pairwise"}
SLOW = {"asyncio", "typing", "dataclasses", "json", "re", "enum", "argparse", "logging", "pathlib", "subprocess"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_syntax_is_that_of_python_3_7(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & NEW_METHODS
    assert not any(isinstance(node, (ast.NamedExpr, ast.Match)) for node in ast.walk(tree))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body) or not any(
        isinstance(node, (ast.FunctionDef, ast.AnnAssign)) for node in ast.walk(tree)
    ), "annotations must not be evaluated"


def test_starting_imports_nothing_slow() -> None:
    code = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {str(FOLDER)!r})\n"
        "import bai_runner.app, bai_runner.runner, bai_runner.query\nprint(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & SLOW
    assert "bai_runner.batch" not in loaded

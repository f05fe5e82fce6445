"""What the documentation names is there: files, modules, tests, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.pages import generated

ROOT = Path(__file__).parents[2]
TOPS = "launcher|workers|splits|slurm|benchmarks|tests|examples"
TOP = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md")])
TREE = [*PAGES, *(path for top in TOPS.split("|") for path in (ROOT / top).rglob("*.py"))]


def named(page: Path, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(pattern, page.read_text(encoding="utf-8"))


def is_module_or_in_one(name: str) -> bool:
    """Whether `name` is a module, a package, or something that a module defines."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, _, attribute = name.rpartition(".")
    for file in (ROOT / module.replace(".", "/")).with_suffix(".py"), ROOT / module / "__init__.py":
        if file.is_file():
            return re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")) is not None
    return bool(module) and is_module_or_in_one(module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    paths = [path for path, _ in named(page, rf"(?<!\]\()(?<![\w./-])((?:{TOPS})/[\w./-]*[\w/])()")]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_modules_that_a_text_names_exist() -> None:
    full = r"(?<![\w./'-])(bundlerun\.[a-z]\w*(?:\.[a-z]\w*)*)()"
    short = r"`((?:launcher|workers|splits|slurm)(?:\.[a-z]\w*)+)()`"
    names = {(page, name) for page in TREE for name, _ in named(page, full) + named(page, short)}
    assert [(page, name) for page, name in names if not is_module_or_in_one(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    file = ""
    for path, test in named(page, r"(tests/[\w/]+\.py)?::(test_\w+)"):
        file = path or file  # `::test_it` is in the file that was named last
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = [link for link, _ in named(page, r"\]\(((?!https?:)[^)#\s]+)()[^)]*\)")]
    made = {ROOT / "docs" / path for path in generated()}
    there = [(page.parent / link).resolve() for link in links]
    lost = [str(path) for path in there if not path.exists() and path not in made]
    assert lost == []

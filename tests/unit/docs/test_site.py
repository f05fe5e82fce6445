"""The pages as a site: each has its place, and links lead to headings. `make docs` builds it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
import yaml
from markdown.extensions.toc import slugify

from docs.generate.pages import generated
from tests.unit.docs.pages import DOCS, ROOT, blocks

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def nav(entries: object) -> list[str]:
    """The pages of a part of the nav."""
    if isinstance(entries, str):
        return [entries]
    parts = entries.values() if isinstance(entries, dict) else entries
    return [page for part in parts for page in nav(part)]


def texts() -> dict[str, str]:
    """Path below docs/ -> Markdown, generated pages too."""
    written = {str(path.relative_to(DOCS)): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
    return {**written, **generated()}


TEXTS = texts()


def without_code(text: str) -> str:
    for _, body in blocks(text):
        text = text.replace(body, "")
    return re.sub(r"^ {4}.*$|^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What the headings of a page are called."""
    found: set[str] = set()
    fenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", fenced, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*\\]", r"\1", heading)
        name = base = slugify(plain, "-")
        count = 0
        while name in found:
            count += 1
            name = f"{base}_{count}"
        found.add(name)
    return found


def test_every_page_has_one_place_in_the_nav() -> None:
    placed = nav(CONFIG["nav"])
    assert sorted(placed) == sorted(TEXTS)


@pytest.mark.parametrize("page", TEXTS)
def test_links_of_a_page_lead_to_pages_and_headings(page: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        there = _joined(PurePosixPath(page).parent, path) if path else page
        if there not in TEXTS:
            # Pages at the top of the checkout are known by their names in the site.
            if not (DOCS / there).exists():
                wrong.append(link)
        elif anchor and anchor not in anchors(TEXTS[there]):
            wrong.append(link)
    assert wrong == []


def _joined(folder: PurePosixPath, path: str) -> str:
    parts: list[str] = []
    for part in (folder / path).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(part for part in parts if part != ".")


def test_links_from_the_top_lead_to_headings() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for path, anchor in re.findall(
            r"\]\(docs/([\w./-]+)#([\w-]+)\)", (ROOT / name).read_text()
        ):
            assert anchor in anchors(TEXTS[path]), f"{path}#{anchor}"


def test_nothing_of_the_site_is_fetched_from_elsewhere() -> None:
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["strict"] is True


def test_a_heading_that_is_there_twice_has_two_names() -> None:
    assert anchors("# One `two`\n\n## A [b](c.md)\n\n## A b\n") == {"one-two", "a-b", "a-b_1"}

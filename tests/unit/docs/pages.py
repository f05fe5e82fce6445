"""The pages of the documentation, and what is in them: commands, code, headings, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
TOP = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
PAGES = sorted([*TOP, *DOCS.rglob("*.md")])
WRONG = DOCS / "benchmarks" / "errors.md"
"""Its commands are wrong on purpose; tests/unit/benchmarks/test_errors.py has a look at them."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code; no language where it is indented."""
    for language, body in _FENCE.findall(text):
        yield language, body
    for body in _INDENTED.findall(_FENCE.sub("", text)):
        yield "", dedent(body)


def typed_lines(text: str) -> Iterator[str]:
    """Lines of blocks, those that go on in the next one joined, without remarks."""
    for language, body in blocks(text):
        if language in ("", "sh", "bash", "console"):
            for line in re.sub(r"\\\n\s*", " ", body).splitlines():
                yield re.sub(r"(^|\s{2,})#.*$|\s#\s.*$", "", line).strip()


def inline(text: str) -> Iterator[str]:
    """What is written as code within a line, tables too."""
    for body in _INLINE.findall(_INDENTED.sub("\n", _FENCE.sub("", text))):
        yield body.replace(r"\|", "|")


def words_of(line: str) -> list[str]:
    """The words of a command, without what is or may be left out (`...`, `[...]`)."""
    line = re.sub(r"\[[^\]'\"]*\s[^\]]*\]|\[-[^\]]*\]", " ", line)
    return [word for word in shlex.split(line, comments=False) if word not in ("...", "…")]

"""All pages that are not in docs/ as files."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

from docs.generate import errors, reference

ROOT = Path(__file__).parents[2]
TOP = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that lie at the top of the checkout, where people look for them."""


@cache
def generated() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    top = {page: _moved((ROOT / file).read_text("utf-8")) for page, file in TOP.items()}
    return {**reference.pages(), **errors.pages(), **top}


def _moved(text: str) -> str:
    """A page of the top with its links as seen from docs/."""
    return re.sub(r"\]\(docs/", "](", text)


if __name__ == "__main__":
    for path, text in generated().items():
        sys.stdout.write(f"<!-- {path} -->\n\n{text}\n")

"""What MkDocs calls: it adds the pages that are made of the source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[2]
# MkDocs loads this file by its path, and the checkout need not be installed.
sys.path.insert(0, str(ROOT))

from docs.generate.pages import generated  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those in docs/."""
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files

"""The library's public names: there, typed, and nothing is loaded for them before they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bundlerun

ROOT = Path(__file__).parents[2]


def test_the_names_are_those_of_the_stubs() -> None:
    tree = ast.parse((ROOT / "bundlerun" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names}
    assert typed == bundlerun._DOORS  # type: ignore[attr-defined]
    assert sorted(typed) == bundlerun.__all__


@pytest.mark.parametrize("name", bundlerun.__all__)
def test_a_name_is_documented(name: str) -> None:
    assert getattr(bundlerun, name).__doc__
    page = (ROOT / "docs" / "own_loop.md").read_text()
    assert f"`{name}" in page or f"import {name}" in page


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'protekt'"):
        getattr(bundlerun, "protekt")  # noqa: B009 (no type has it)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import bundlerun, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

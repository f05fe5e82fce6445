"""The library's public names: there, typed, and nothing is loaded for them before they are used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

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


def test_the_code_of_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch import nn, optim
    from torch.nn.functional import cross_entropy

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    batches = [(torch.randn(64, 4), torch.arange(64) % 3) for _ in range(2)]
    given = {
        "model": model(), "Model": model, "cross_entropy": cross_entropy, "AdamW": optim.AdamW,
        "batches": batches, "images": batches[0][0],
    }  # fmt: skip
    given["optimizer"] = optim.AdamW(given["model"].parameters())
    given["schedule"] = optim.lr_scheduler.StepLR(given["optimizer"], 10)
    page = (ROOT / "docs" / "own_loop.md").read_text()
    code = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", page, re.MULTILINE)
    assert len(code) == 4
    monkeypatch.chdir(tmp_path)
    for block in code:
        exec(dedent(block), given)
    assert given["run"].step == 2_000
    assert given["run"].run_dir == Path("runs/mine")
    assert given["loss"] > 0.0
    given["bundle"].close()


def test_the_examples_have_few_lines_of_ours() -> None:
    def lines(name: str, pattern: str) -> list[str]:
        text = (ROOT / "examples" / name).read_text()
        return [line for line in text.splitlines() if re.search(pattern, line)]

    marked = lines("protected_ddp.py", r"  #( was|$)")
    assert marked == lines("protected_ddp.py", r"import protect|protect\(|\brun\.")
    assert len(marked) <= 5
    assert len(lines("pipelined_loop.py", r"\b[Bb]undle\b")) <= 25


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'protekt'"):
        getattr(bundlerun, "protekt")  # noqa: B009 (no type has it)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import bundlerun, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

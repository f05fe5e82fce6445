"""The library's public names: there, typed, and nothing is loaded for them before they are used."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import bundlerun
from bundlerun.workers.own.protect import Run

ROOT = Path(__file__).parents[2]
DOORS = {
    "protect": "objects run_dir each_rank protection",
    "Protection": "snapshot_steps snapshot_dir checkpoint_steps keep timeout_s",
    "Cut": "shape at cutter chunks schedule microbatch_size recompute precision sync "
    "exchange_dtype seed timeout_s",
    "Bundle.of": "model loss example batch_size metrics cut",
    "Bundle.step": "self inputs targets",
    "Bundle.evaluate": "self inputs targets num_samples",
    "Bundle.clip_grad_norm_": "self max_norm",
    "Bundle.save": "self folder optimizer keep",
    "Bundle.load": "self folder optimizer",
    "Bundle.close": "self",
    "Bundle.parameters": "self",
    "Bundle.named_parameters": "self",
    "Run.steps": "self num_steps",
    "Run.note": "self values",
}
"""What people's programs call, by which names; new ones come at the end, with a default."""


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


def public(name: str) -> Any:
    """By its name in `DOORS`."""
    first, _, rest = name.partition(".")
    found = Run if first == "Run" else getattr(bundlerun, first)
    return getattr(found, rest) if rest else found


@pytest.mark.parametrize("name", DOORS)
def test_what_programs_call_is_as_it_was(name: str) -> None:
    had = DOORS[name].split()
    now = inspect.signature(public(name)).parameters
    assert [*now][: len(had)] == had
    assert all(now[new].default is not inspect.Parameter.empty for new in [*now][len(had) :])


@pytest.mark.parametrize("kind", [bundlerun.Bundle, Run])
def test_all_that_is_public_is_documented(kind: type) -> None:
    page = (ROOT / "docs" / "own_loop.md").read_text()
    names = [name for name in vars(kind) if not name.startswith("_")]
    assert len(names) >= 5
    for name in names:
        assert getattr(kind, name).__doc__, name
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", page), f"{name} is not in the page"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'protekt'"):
        getattr(bundlerun, "protekt")  # noqa: B009 (no type has it)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import bundlerun, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

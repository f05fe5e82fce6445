"""Python in pages: it is Python, and what the page on coming from elsewhere shows runs."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.docs.pages import DOCS, PAGES, ROOT, blocks

PAGE = (DOCS / "coming_from.md").read_text()
SECTIONS = dict(re.findall(r"^## From (\S+).*?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_a_page_is_python(page: Path) -> None:
    for language, body in blocks(page.read_text()):
        if language == "python":
            ast.parse(body)


def ours(name: str) -> str:
    """The second block of a section: what replaces the first."""
    _theirs, mine = (body for language, body in blocks(SECTIONS[name]) if language == "python")
    return mine


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the blocks use and do not make."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.optim import AdamW

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    batches = [(torch.randn(64, 4), torch.arange(64) % 3) for _ in range(2)]
    monkeypatch.chdir(tmp_path)
    return {
        "nn": nn, "AdamW": AdamW, "cross_entropy": cross_entropy, "Model": model,
        "batches": batches,
        "images": batches[0][0], "batch_of": lambda step: batches[step % 2],
        "front": nn.Linear(4, 8), "middle": nn.ReLU(), "rear": nn.Linear(8, 3),
        "Samples": lambda count: [(torch.randn(4), torch.tensor(i % 3)) for i in range(count)],
    }  # fmt: skip


def test_the_loop_of_ddp_runs(names: dict[str, Any]) -> None:
    """In one process, as if it were not parallel; tests/e2e/test_own_loop.py has ranks."""
    names["dist"] = SimpleNamespace(init_process_group=lambda backend: None)
    names["DistributedDataParallel"] = lambda model: model
    exec(ours("DistributedDataParallel"), names)
    assert names["run"].step == 100


@pytest.mark.parametrize("name", ["accelerate", "DeepSpeed's"])
def test_the_pipeline_runs(name: str, names: dict[str, Any]) -> None:
    exec(ours(name), names)
    assert names["loss"] > 0.0
    names["bundle"].close()
    assert any(Path("state").rglob("manifest.json"))


def test_the_recipe_has_what_a_recipe_needs(names: dict[str, Any]) -> None:
    import torch

    from bundlerun.launcher.config import TrainConfig

    exec(ours("Lightning"), names)
    recipe = names["recipe"](TrainConfig(data="DATA", lr=0.5))
    recipe.check()
    data = recipe.open_data()
    model = recipe.model(data.info) if hasattr(data, "info") else recipe.model(None)
    inputs, target = data.train[0]
    assert recipe.loss(model(inputs[None]), target[None]).ndim == 0
    assert recipe.optimizer(model.named_parameters()).defaults["lr"] == 0.5
    assert isinstance(recipe.metrics(torch.zeros(1, 3), target[None]), dict)
    assert os.environ.get("RANK") is None

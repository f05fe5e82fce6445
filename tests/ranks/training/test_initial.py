"""A cut model that begins with weights, and is frozen in part, trains as in plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundlerun.launcher.layout.shape import Shape
from tests.ranks.harness import outcomes
from tests.ranks.reference import train_unsplit
from tests.ranks.state.test_resume import trains
from tests.ranks.tiny_model import Tiny
from tests.ranks.training.test_parity import (
    CONFIG,
    NUM_STEPS,
    assert_close,
    final_tensors,
    losses_of,
    run_state,
)

PLAIN = replace(CONFIG, clip_norm=0.0)
BY_HAND = """
import torch
from tests.ranks.tiny_model import Tiny

class Tuned(Tiny):
    def train(self, mode=True):
        super().train(mode)
        for name in {still}:
            self.get_submodule(name).eval()
        return self

def build(num_outputs):
    model = Tuned(num_outputs)
    state = torch.load({file!r})
    state = {{n.removeprefix("module."): t for n, t in state.items() if "head" not in n}}
    model.load_state_dict(state, strict=False)
    for name in {frozen}:
        model.get_submodule(name).requires_grad_(False)
    return model
"""


def weights(folder: Path) -> str:
    """Those of a model with other classes, as DDP saves it."""
    torch.manual_seed(7)
    model = Tiny(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            module.num_batches_tracked.fill_(9)  # type: ignore[union-attr]
    torch.save({f"module.{n}": t for n, t in model.state_dict().items()}, folder / "w.pth")
    return str(folder / "w.pth")


@pytest.mark.parametrize(
    ("frozen", "shape", "nodes", "how"),
    [
        (("first", "norm1", "second"), (1, 1), (2, 2), {"cut": ("second",)}),
        # Nothing of the front is trained: no gradient comes back to it.
        (("first", "norm1", "second", "norm2"), (2, 1), (3,), {"cut": ("third",)}),
        (
            ("first", "norm1", "second", "norm2"),
            (1, 1),
            (2,),
            {"cut": ("third",), "schedule": "zero-bubble"},
        ),
        (
            ("first", "norm1", "third"),
            (1, 1),
            (2,),
            {"cut": ("second", "third", "head"), "chunks": 2, "recompute": "all"},
        ),
    ],
    ids=["two nodes", "wide front", "zero-bubble", "chunks"],
)
def test_stages_with_weights_and_frozen_parts_train_like_the_unsplit_model(
    frozen: tuple[str, ...],
    shape: tuple[int, ...],
    nodes: tuple[int, ...],
    how: dict[str, Any],
    tmp_path: Path,
) -> None:
    file = weights(tmp_path)
    still = [name for name in frozen if "norm" in name]
    (tmp_path / "by_hand.py").write_text(BY_HAND.format(still=still, frozen=frozen, file=file))
    wanted = train_unsplit(replace(PLAIN, model=f"{tmp_path}/by_hand.py:build"), NUM_STEPS)
    config = replace(PLAIN, init_from=file, freeze=frozen, shape=Shape(shape), **how)
    state = run_state(config, nodes, tmp_path)
    assert_close(state, wanted.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)
    kept = torch.load(file)
    for name in ("first.weight", "norm1.running_mean", "norm1.num_batches_tracked"):
        assert torch.equal(state[name], kept[f"module.{name}"].to(state[name].dtype))
    of_optimizer = [name for name in final_tensors(tmp_path) if name.startswith("optimizer.")]
    assert any(".norm3.weight." in name for name in of_optimizer)
    assert not [n for n in of_optimizer if n.split(".")[1] in frozen]
    # It goes on without them.
    Path(file).unlink()
    more = replace(config, max_steps=NUM_STEPS + 1, epochs=4)
    assert not torch.equal(run_state(more, nodes, tmp_path)["head.weight"], state["head.weight"])


def test_weights_of_another_model_end_the_ranks_before_the_first_step(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    config = replace(
        PLAIN,
        init_from=str(tmp_path / "w.pth"),
        shape=Shape((1, 1)),
        cut=("second",),
        run_dir=str(tmp_path / "run"),
    )
    found = outcomes((2,), trains(config), tmp_path, 60.0)
    assert all("is of another model than --model " in text for text in found.values())
    assert len(found) == 2


ADAPTED = """
from collections import OrderedDict
from torch import nn

def build(num_outputs):
    return nn.Sequential(OrderedDict(
        flat=nn.Flatten(), one=nn.Linear(192, 8), norm=nn.BatchNorm1d(8), act=nn.Tanh(),
        two=nn.Linear(8, 8), last=nn.Tanh(), head=nn.Linear(8, num_outputs),
    ))

def build_by_hand(num_outputs):
    import peft
    model = build(num_outputs)
    settings = peft.LoraConfig(r=2, lora_alpha=4.0, target_modules="one|two")
    peft.inject_adapter_in_model(settings, model)
    model.head.requires_grad_(True)
    norm = model.norm
    norm.training = False
    norm.train = lambda mode=True: norm
    return model
"""


def test_adapters_train_like_those_of_the_unsplit_model(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    (tmp_path / "adapted.py").write_text(ADAPTED)
    model = f"{tmp_path / 'adapted.py'}:build"
    wanted = train_unsplit(replace(PLAIN, model=f"{model}_by_hand"), NUM_STEPS)
    config = replace(PLAIN, model=model, lora=2, shape=Shape((1, 1)), cut=("two",))
    state = run_state(config, (2, 2), tmp_path)
    assert_close(state, wanted.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)
    assert bool(state["one.lora_B.default.weight"].any())

"""A stage that gets its numbers late has those of a model that is built in full, to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.model import late
from bundlerun.workers.model.example import Example
from bundlerun.workers.model.late import Late, build_late
from bundlerun.workers.model.stage import CutModel, cut_model
from bundlerun.workers.recipe import DataInfo, load_recipe

SEED = 5
INFO = DataInfo(num_train=8, num_val=0, num_outputs=10)
TWO = TrainConfig(data="synthetic", shape=Shape((1, 1)), num_classes=10, image_size=64)


@pytest.fixture(autouse=True)
def _memory_that_shows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `torch.empty` gives is NaN; and no parameter is too small to be late."""
    honest = build_late
    monkeypatch.setattr("bundlerun.workers.model.stage.build_late", partial(honest, least_bytes=0))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


Built = TypeVar("Built", bound=nn.Module)


def in_full(build: Callable[[], Built]) -> Built:
    torch.manual_seed(SEED)
    return build()


def late_made(build: Callable[[], Built]) -> tuple[Built, Late]:
    made, left = build_late(build, SEED, least_bytes=0)
    assert left is not None
    return made, left


def is_same(one: nn.Module, other: nn.Module) -> bool:
    own, its = one.state_dict(), other.state_dict()
    return list(own) == list(its) and all(torch.equal(own[name], its[name]) for name in own)


def has_gaps(module: nn.Module) -> bool:
    return any(bool(p.isnan().any()) for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "stage"),
    [("resnet18", 0), ("resnet18", 1), ("mobilenet_v3_small", 1), ("squeezenet1_0", 0)],
)
def test_a_stage_has_the_numbers_of_the_whole_model(name: str, stage: int) -> None:
    config = replace(TWO, model=name)
    recipe = load_recipe(config)
    full = cut_model(config, recipe, INFO).stages[stage]
    after = torch.rand(3)
    own = cut_model(config, recipe, INFO, only=stage).stages
    assert torch.equal(torch.rand(3), after)  # the random numbers go on as they would have
    assert is_same(own[stage], full)
    assert has_gaps(own[1 - stage])


class Initialised(nn.Module):
    """What people do to weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, padding_idx=0)
        self.layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
        self.norm = nn.LayerNorm(3)
        self.position = nn.Parameter(torch.empty(1, 3).normal_(std=0.02))  # drawn before it is one
        weights: list[nn.Parameter] = [layer.weight for layer in self.layers]  # type: ignore[misc]
        weights[0].data.normal_(0, 0.02).mul_(0.5)
        nn.init.trunc_normal_(weights[1])
        nn.init.orthogonal_(weights[2])
        nn.init.sparse_(weights[3], sparsity=0.5)
        start = torch.rand(3)
        with torch.no_grad():
            weights[4][1].copy_(start)
            weights[5].t()[2].fill_(random.random())
        start.zero_()
        self.empty = nn.Parameter(torch.empty(0, 3).normal_())
        nn.init.normal_(self.empty)
        nn.init.constant_(self.norm.weight, 3)


def test_the_usual_ways_to_initialise_are_late() -> None:
    random.seed(1)
    full = in_full(Initialised)
    after = torch.rand(3), random.random()
    random.seed(1)
    made, left = late_made(Initialised)
    assert (torch.rand(3).tolist(), random.random()) == (after[0].tolist(), after[1])
    assert has_gaps(made)
    # Only what is asked for, whatever the random numbers do by then.
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert left.fill(made.layers)
    assert torch.equal(torch.get_rng_state(), before)
    assert is_same(made.layers, full.layers)
    assert torch.equal(made.position, full.position)
    assert bool(made.table.weight[1:].isnan().all())


def test_the_first_parameters_of_a_model_are_filled_at_once() -> None:
    # The table, weight and bias of the first layer.
    made, left = build_late(Initialised, SEED, least_bytes=4 * (4 * 3 + 3 * 3 + 3))
    assert left is not None
    assert not has_gaps(made.table)
    assert [has_gaps(layer) for layer in made.layers] == [False, *[True] * 5]
    whole, nothing = build_late(Initialised, SEED)
    assert nothing is None
    assert not has_gaps(whole)


class Reads(nn.Module):
    """A model that looks at its numbers while it is made."""

    def __init__(self, look: Callable[[Reads], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        look(self)


def _copies(model: Reads) -> None:
    model.other = copy.deepcopy(model.layer)


def _normalises(model: Reads) -> None:
    with torch.no_grad():
        model.other.weight.copy_(model.layer.weight / model.layer.weight.std())


def _keeps(model: Reads) -> None:
    model.kept = model.layer.weight.detach()


def _draws_elsewhere(model: Reads) -> None:
    own = torch.Generator().manual_seed(random.randrange(100))
    nn.init.normal_(model.layer.weight, generator=own)


@pytest.mark.parametrize("look", [_copies, _normalises, _keeps, _draws_elsewhere])
def test_a_model_that_uses_the_numbers_is_built_in_full(look: Callable[[Reads], object]) -> None:
    random.seed(2)
    full = in_full(lambda: Reads(look))
    random.seed(2)
    made, left = build_late(lambda: Reads(look), SEED, least_bytes=0)
    assert left is None
    assert is_same(made, full)


def test_a_model_that_cannot_be_made_while_somebody_looks_on_is_built_in_full() -> None:
    def build() -> nn.Module:
        made = nn.Linear(3, 3)
        if made.weight.isnan().any():
            raise ValueError("these are no weights")
        return made

    full = in_full(build)
    made, left = build_late(build, SEED, least_bytes=0)
    assert left is None
    assert is_same(made, full)

    def fails() -> nn.Module:
        raise ValueError("never")

    with pytest.raises(ValueError, match="never"):
        build_late(fails, SEED)


def test_a_part_that_holds_copies_is_not_taken_for_filled() -> None:
    made, left = late_made(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert not left.fill(copy.deepcopy(made[1]))
    assert left.fill(made[1])


def test_a_cutter_that_copies_gets_a_model_that_was_built_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(TWO, model="resnet18")
    recipe = load_recipe(config)
    full = cut_model(config, recipe, INFO)
    monkeypatch.setattr(late.Late, "fill", lambda self, part: False)
    made: CutModel = cut_model(config, recipe, INFO, only=1)
    for own, other in zip(made.stages, full.stages, strict=True):
        assert is_same(own, other)


@pytest.mark.parametrize(
    "more",
    [{"lora": 2, "lora_targets": ("fc",)}, {"cutter": "replay", "cut": ("layer3",)}],
    ids=["lora", "replay"],
)
def test_adapters_and_replay_have_the_same_numbers_late(more: dict[str, object]) -> None:
    config = replace(TWO, model="resnet18", **more)  # type: ignore[arg-type]
    recipe, example = (
        load_recipe(config),
        Example(inputs=(torch.empty(2, 3, 64, 64, device="meta"),)),
    )
    full = cut_model(config, recipe, INFO, example=example)
    own = cut_model(config, recipe, INFO, only=1, example=example).stages[1]
    assert is_same(own, full.stages[1])


def test_memory_of_what_nobody_wants_is_not_written() -> None:
    torch.use_deterministic_algorithms(False)
    size = 64 << 20

    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(6)))

    before = _resident()
    made, left = late_made(build)
    # One of six, and memory to draw into.
    assert left.fill(made[2])
    assert _resident() - before < 3 * size
    del made, left


def _resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def test_tensors_that_are_no_parameters_are_as_ever() -> None:
    class Buffered(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("mask", torch.rand(4))

    full = in_full(Buffered)
    made, left = late_made(Buffered)
    assert torch.equal(made.mask, full.mask)
    assert left.fill(made)
    assert is_same(made, full)

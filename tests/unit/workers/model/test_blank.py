"""A model that is loaded afterwards is built without its numbers, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.model.blank import build_blank
from bundlerun.workers.model.stage import cut_model, make_stage
from bundlerun.workers.recipe import DataInfo, load_recipe
from bundlerun.workers.state.named import load_state_tensors, stage_names, state_tensors

SEED = 5


@pytest.fixture(autouse=True)
def _memory_that_shows() -> Iterator[None]:
    """What `torch.empty` gives is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def built_in_full(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(SEED)
    return build()


def is_blank(tensor: Tensor) -> bool:
    return bool(tensor.isnan().all())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_what_a_model_draws_for_its_parameters_is_left_out(name: str) -> None:
    model = build_blank(lambda: build_model(name, 10), SEED)  # type: ignore[arg-type, return-value]
    full = built_in_full(lambda: build_model(name, 10))  # type: ignore[arg-type, return-value]

    weights = [p for n, p in model.named_parameters() if p.dim() > 1]
    assert weights
    assert all(map(is_blank, weights))
    others = dict(full.named_buffers())
    assert all(torch.equal(value, others[n]) for n, value in model.named_buffers())
    assert list(model.state_dict()) == list(full.state_dict())


class Initialised(nn.Module):
    """What people do to weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        first, second, third = (layer for layer in self.layers)
        first.weight.data.normal_(0, 0.02).mul_(0.5)  # type: ignore[union-attr, operator]
        nn.init.trunc_normal_(second.weight)  # type: ignore[arg-type]
        nn.init.orthogonal_(third.weight)  # type: ignore[arg-type]


def test_the_usual_ways_to_initialise_are_left_out() -> None:
    model = build_blank(Initialised, SEED)
    honest = nn.init.trunc_normal_

    assert all(is_blank(p) for p in model.parameters())
    assert nn.init.trunc_normal_ is honest
    assert honest.__module__ == "torch.nn.init"


class Reads(nn.Module):
    """A model that keeps something besides its state, which comes from random numbers."""

    def __init__(self, keep: Callable[[Reads], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.kept = keep(self)


def keep_buffer(model: Reads) -> None:
    model.register_buffer("mine", model.layer.weight.data, persistent=False)


READERS: dict[str, Callable[[Reads], object]] = {
    "a copy": lambda m: [m.layer.weight.detach().clone()],
    "a deep copy": lambda m: copy.deepcopy(m.layer),
    "a number": lambda m: float(m.layer.weight.std()),
    "a comparison": lambda m: bool(m.layer.weight[0, 0] > 0),
    "a list of numbers": lambda m: m.layer.weight.tolist(),
    "an array": lambda m: m.layer.weight.detach().numpy().copy(),
    "a view": lambda m: [m.layer.weight.detach()[0]],
    "a buffer": keep_buffer,
    "a tensor that took it": lambda m: torch.zeros(3, 3).copy_(m.layer.weight.detach()),
    "an argument by name": lambda m: torch.add(input=torch.ones(3, 3), other=m.layer.weight).sum(),
    "numbers of its own": lambda _: torch.randn(2),
    "a choice of its own": lambda _: int(torch.randint(1000, ())),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_that_uses_the_numbers_is_built_in_full(reader: str) -> None:
    def build() -> Reads:
        return Reads(READERS[reader])

    model, full = build_blank(build, SEED), built_in_full(build)

    assert isinstance(full, Reads)
    for name, value in full.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    if isinstance(full.kept, (int, float)):
        assert model.kept == full.kept


CONFIG = TrainConfig(model="resnet18", data="synthetic", shape=Shape((1, 1)), image_size=32)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_is_loaded_is_as_if_it_had_been_initialised(stage: int) -> None:
    recipe, info = load_recipe(CONFIG), DataInfo(num_train=8, num_val=0, num_outputs=10)
    full = make_stage(CONFIG, recipe, info, stage)
    stored = {name: value.clone() for name, value in state_tensors(full, None).items()}

    blank = cut_model(CONFIG, recipe, info, is_loaded_later=True).stages[stage]
    assert any(is_blank(p) for p in blank.parameters())
    load_state_tensors(blank, None, {n: stored[n] for n in stage_names(blank, stored)})

    for name, value in full.state_dict().items():
        assert torch.equal(blank.state_dict()[name], value)


def test_an_optimizer_that_keeps_the_first_numbers_gets_them() -> None:
    config = replace(CONFIG, shape=Shape((1,)))
    recipe, info = load_recipe(config), DataInfo(num_train=8, num_val=0, num_outputs=10)
    honest = recipe.optimizer

    def keeps(parameters: object) -> object:
        named = list(parameters)  # type: ignore[call-overload]
        optimizer = honest(named)
        optimizer.first = [p.detach().clone() for _, p in named]  # type: ignore[attr-defined]
        return optimizer

    recipe.optimizer = keeps  # type: ignore[method-assign, assignment]
    made = cut_model(config, recipe, info, is_loaded_later=True).stages[0]

    assert not any(is_blank(p) for p in made.parameters())

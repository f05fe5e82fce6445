"""The groups of the optimizers that options name, and the fused kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, RMSprop
from torchvision.models import convnext_tiny, resnet18, swin_t, vit_b_16

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.optimizer import begin_momenta, make_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.over_all = nn.LayerNorm([4, 2, 2])
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))


def decays(model: nn.Module, **options: Any) -> dict[str, float]:
    """The weight decay of each parameter."""
    config = TrainConfig(data="x", weight_decay=0.5, **options)
    optimizer = make_optimizer(config, model.named_parameters())
    by_parameter = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(by_parameter)
    return {name: by_parameter[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_all_parameters_are_one_group_where_nothing_else_is_asked(optimizer: Any) -> None:
    config = TrainConfig(data="x", optimizer=optimizer)
    made = make_optimizer(config, Small().named_parameters())
    assert type(made) is {"sgd": SGD, "adamw": AdamW}[optimizer]
    assert len(made.param_groups) == 1
    assert made.param_groups[0]["fused"] is None  # on the CPU the usual way
    empty = make_optimizer(config, nn.ReLU().named_parameters())
    assert [group["params"] for group in empty.param_groups] == [[]]


def test_norms_and_biases_have_a_weight_decay_of_their_own() -> None:
    norms = {"norm.weight", "norm.bias", "over_all.weight", "over_all.bias"}
    biases = {"conv.bias", "norm.bias", "over_all.bias", "head.bias"}
    found = decays(Small(), norm_weight_decay=0.0)
    assert {name for name, decay in found.items() if decay == 0.0} == norms
    found = decays(Small(), bias_weight_decay=0.25)
    assert {name for name, decay in found.items() if decay == 0.25} == biases
    found = decays(Small(), norm_weight_decay=0.0, bias_weight_decay=0.25)
    assert {name for name, decay in found.items() if decay == 0.25} == biases
    assert {name for name, decay in found.items() if decay == 0.0} == norms - biases
    assert set(decays(Small(), norm_weight_decay=0.5).values()) == {0.5}


def test_embeddings_of_transformers_have_a_weight_decay_of_their_own() -> None:
    with torch.device("meta"):
        vit, swin = vit_b_16(), swin_t()
    found = decays(vit, embedding_weight_decay=0.0)
    assert {n for n, d in found.items() if d == 0.0} == {"class_token", "encoder.pos_embedding"}
    found = decays(swin, embedding_weight_decay=0.0, norm_weight_decay=0.1)
    tables = {n for n, d in found.items() if d == 0.0}
    assert tables
    assert all(name.endswith("relative_position_bias_table") for name in tables)


def test_the_other_optimizers_are_those_of_torchvisions_reference() -> None:
    nesterov, rmsprop = (
        make_optimizer(
            TrainConfig(data="x", optimizer=name, lr=0.3, momentum=0.8),  # type: ignore[arg-type]
            Small().named_parameters(),
        )
        for name in ("sgd-nesterov", "rmsprop")
    )
    assert type(nesterov) is SGD
    assert (nesterov.defaults["nesterov"], nesterov.defaults["momentum"]) == (True, 0.8)
    assert type(rmsprop) is RMSprop
    wanted = {"lr": 0.3, "momentum": 0.8, "weight_decay": 1e-4, "alpha": 0.9, "eps": 0.0316}
    assert rmsprop.defaults.items() >= wanted.items()


@pytest.mark.parametrize("make", [resnet18, convnext_tiny, vit_b_16])
def test_norms_are_those_that_their_classes_say(make: Any) -> None:
    with torch.device("meta"):
        model = make()
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    wanted = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for own, _ in module.named_parameters(recurse=False)
    }
    found = decays(model, norm_weight_decay=0.0)
    assert {name for name, decay in found.items() if decay == 0.0} == wanted


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_fused_sgd_takes_a_parameter_whose_first_gradient_comes_later(momentum: float) -> None:
    states = []
    for fused in (False, True):
        pair = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = SGD([{"params": pair}], lr=0.5, momentum=momentum, fused=fused)
        optimizer.register_step_pre_hook(begin_momenta)
        for step in range(3):
            pair[0].grad = torch.full((3,), 1.0 + step)
            pair[1].grad = None if step == 0 else torch.full((3,), 3.0)
            optimizer.step()
        states.append([p.detach().clone() for p in pair])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_parameter_of_another_device_type_gets_the_fused_kernel() -> None:
    """A stand-in for a GPU: what says so is the device's type."""

    class OnGpu(nn.Parameter):
        device = torch.device("cuda", 0)

    made = make_optimizer(TrainConfig(data="x"), [("w", OnGpu(torch.ones(2)))])
    assert made.param_groups[0]["fused"] is True
    assert begin_momenta in made._optimizer_step_pre_hooks.values()  # type: ignore[attr-defined]
    whole = OnGpu(torch.ones(2, dtype=torch.complex64))
    mixed = make_optimizer(TrainConfig(data="x"), [("w", whole)])
    assert mixed.param_groups[0]["fused"] is None

"""Adapters of low rank beside linear layers, by peft; all else of a model is frozen but its head.

    blocks.3.mlp.fc1.base_layer.weight          as before, frozen
    blocks.3.mlp.fc1.lora_A.default.weight      trained, (rank, inputs)
    blocks.3.mlp.fc1.lora_B.default.weight      trained, (outputs, rank), zeros at first

Source: Hu et al., 2021. `bundlerun export` adds them to the weights that they are beside.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.splits.weights.freezing import keep_norms
from bundlerun.splits.weights.matching import is_under

Model = nn.Module | Sequence[nn.Module]
BASE = ".base_layer."
_ADAPTER = ".lora_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What adapters there are.

    Args:
        rank: of each.
        alpha: their results are multiplied by alpha / rank.
        targets: linear layers that have one, by patterns of their names or of modules with all
            linear layers that they hold; nothing: all but the last layer.
    """

    rank: int
    alpha: float
    targets: Sequence[str] = ()


def plain_name(name: str) -> str:
    """The name of a tensor in a model without adapters."""
    return name.replace(BASE, ".")


def is_adapter(name: str) -> bool:
    """Whether a tensor is of an adapter."""
    return _ADAPTER in name


def add_adapters(model: Model, lora: Lora) -> tuple[Model, str]:
    """The model with adapters, which are put into it in place; in a line, what is trained now.

    Args:
        model: or its stages, under the names that `nn.Sequential` of them would give.
        lora: which.

    Raises:
        ConfigError: peft is not installed, or no linear layer has such a name.
    """
    # One module over the stages: whose names count, and which keeps them.
    root = model if isinstance(model, nn.Module) else nn.Sequential(*model)
    linear, last = _linear_layers(root), _last_layer(root)
    targets = [
        name
        for name in linear
        if any(is_under(name, p) for p in lora.targets) or (not lora.targets and name != last)
    ]
    for pattern in lora.targets or ("*",):
        if not any(is_under(name, pattern) for name in targets):
            raise ConfigError(
                f"--lora-targets {pattern!r} names no linear layer; {nearest(pattern, linear)}"
            )
    peft: Any = importlib.import_module("peft")
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        # A pattern has to fit a whole name; of a list the ends of names would do.
        target_modules="|".join(map(re.escape, targets)),
    )
    peft.inject_adapter_in_model(settings, root)
    for name, parameter in root.named_parameters():
        is_head = name.rpartition(".")[0] == last and last not in targets
        parameter.requires_grad_(is_adapter(name) or is_head)
    keep_norms(root, "", ())
    trained = sum(p.numel() for p in root.parameters() if p.requires_grad)
    every = sum(p.numel() for p in root.parameters())
    head = f", and {last}" if last not in targets else ""
    said = (
        f"adapters of rank {lora.rank} beside {len(targets)} linear layers{head}: "
        f"{trained / 1e6:.3g} of {every / 1e6:.3g} million numbers are trained"
    )
    # A stage that is a linear layer is another module now.
    return (root if root is model else list(root.children())), said


def _linear_layers(root: nn.Module) -> list[str]:
    return list(_walk(root, ""))


def _walk(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = prefix + name
        if type(child) is nn.Linear:
            yield path
        # Its weights are used without calling the layer, so that no adapter would be.
        elif not isinstance(child, nn.MultiheadAttention):
            yield from _walk(child, f"{path}.")


def _last_layer(root: nn.Module) -> str:
    owners = [name.rpartition(".")[0] for name, _ in root.named_parameters()]
    return owners[-1] if owners else ""

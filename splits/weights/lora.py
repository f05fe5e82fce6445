"""Adapters of low rank beside layers, by peft; all else of a model is frozen but its head.

    blocks.3.mlp.fc1.base_layer.weight          as before, frozen
    blocks.3.mlp.fc1.lora_A.default.weight      trained, (rank, inputs)
    blocks.3.mlp.fc1.lora_B.default.weight      trained, (outputs, rank), zeros at first

Beside a convolution, the first is one of the same size to as many channels as the rank, the second
one of size 1. Weights of transformers' Conv1D are (inputs, outputs), which a mark says that is
saved with them: `lora_transposed`.

Source: Hu et al., 2021. `bundlerun export` adds them to the weights that they are beside.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.splits.weights.freezing import keep_norms
from bundlerun.splits.weights.matching import is_under

Model = nn.Module | Sequence[nn.Module]
BASE = ".base_layer."
TRANSPOSED = ".lora_transposed"
_ADAPTER = ".lora_"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What adapters there are.

    Args:
        rank: of each.
        alpha: their results are multiplied by alpha / rank.
        targets: layers that have one, by patterns of their names or of modules with all that they
            hold; nothing: all linear layers but the last layer, in a model without any its
            convolutions.
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
        ConfigError: peft is not installed, or no layer that can have one has such a name.
    """
    # One module over the stages: whose names count, and which keeps them.
    root = model if isinstance(model, nn.Module) else nn.Sequential(*model)
    layers, last = dict(_walk(root, "")), _last_layer(root)
    targets = _targets(layers, last, lora.targets)
    peft: Any = importlib.import_module("peft")
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        # A pattern has to fit a whole name; of a list the ends of names would do.
        target_modules="|".join(map(re.escape, targets)),
    )
    with warnings.catch_warnings():
        # Of layers that are linear and of Conv1D next to each other, which it tells apart itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        peft.inject_adapter_in_model(settings, root)
    for name in targets:
        if _is_transposed(layers[name]):
            mark = torch.ones(1, dtype=torch.int64)
            root.get_submodule(name).register_buffer(TRANSPOSED.removeprefix("."), mark)
    head = None if last in targets else last
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(is_adapter(name) or name.rpartition(".")[0] == head)
    keep_norms(root, "", ())
    trained = sum(p.numel() for p in root.parameters() if p.requires_grad)
    every = sum(p.numel() for p in root.parameters())
    others = f", and {head}" if head else ""
    said = (
        f"adapters of rank {lora.rank} beside {_counted(layers, targets)}{others}: "
        f"{trained / 1e6:.3g} of {every / 1e6:.3g} million numbers are trained"
    )
    # A stage that is a linear layer is another module now.
    return (root if root is model else list(root.children())), said


def _targets(
    layers: Mapping[str, nn.Module], last: str | None, patterns: Sequence[str]
) -> list[str]:
    if patterns:
        for pattern in patterns:
            if not any(is_under(name, pattern) for name in layers):
                raise ConfigError(
                    f"--lora-targets {pattern!r} names no layer that can have an adapter (linear, "
                    "or a convolution without groups and dilation, whose weight no other layer "
                    f"has); {nearest(pattern, layers)}"
                )
        return [name for name in layers if any(is_under(name, p) for p in patterns)]
    inner = [name for name in layers if name != last]
    linear = [name for name in inner if not isinstance(layers[name], _CONVOLUTIONS)]
    if not inner:
        raise ConfigError("--lora finds no layer that can have an adapter; leave it out")
    return linear or inner


def _counted(layers: Mapping[str, nn.Module], targets: Sequence[str]) -> str:
    num_convolutions = sum(isinstance(layers[name], _CONVOLUTIONS) for name in targets)
    counts = (len(targets) - num_convolutions, "linear layer"), (num_convolutions, "convolution")
    return " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in counts if n)


def _walk(root: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can have an adapter, by name."""
    owners = Counter(
        id(parameter)
        for module in root.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    for name, layer in _inside(root, prefix):
        # Another layer would use the weight without what is added to it.
        if owners[id(layer.weight)] == 1:
            yield name, layer


def _inside(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = prefix + name
        if type(child) is nn.Linear or _is_transposed(child) or _is_plain_convolution(child):
            yield path, child
        # Its weights are used without calling the layer, so that no adapter would be.
        elif not isinstance(child, nn.MultiheadAttention):
            yield from _inside(child, f"{path}.")


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether what peft puts beside a convolution is a convolution like it."""
    if not isinstance(module, _CONVOLUTIONS) or type(module) not in _CONVOLUTIONS:
        return False
    # peft's has neither its dilation nor its padding mode, and cannot be added to one with groups.
    is_dense = module.groups == 1 and all(step == 1 for step in module.dilation)
    return is_dense and module.padding_mode == "zeros"


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer of another form; loads nothing."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _last_layer(root: nn.Module) -> str | None:
    """The layer that gives the outputs; None where it has the weight of another, as a tied head."""
    named = list(root.named_parameters(remove_duplicate=False))
    last = named[-1][0].rpartition(".")[0] if named else None
    num_uses = Counter(id(parameter) for _, parameter in named)
    is_tied = any(num_uses[id(p)] > 1 for name, p in named if name.rpartition(".")[0] == last)
    return None if is_tied else last

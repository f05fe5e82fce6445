"""The parameters and buffers of a module, by name and by identity."""

from __future__ import annotations

from torch import Tensor, nn


def named_state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of `module` under all their names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of `module`, each once."""
    return [*module.parameters(), *module.buffers()]


def names_by_id(*modules: nn.Module) -> dict[int, list[str]]:
    """Every name of each parameter and buffer, by the tensor's identity."""
    names: dict[int, list[str]] = {}
    for module in modules:
        for name, tensor in named_state(module):
            names.setdefault(id(tensor), []).append(name)
    return names


def find_attribute(model: nn.Module, path: str) -> object:
    """What `path` leads to: a parameter, buffer, constant or module."""
    owner, _, name = path.rpartition(".")
    found: object = getattr(model.get_submodule(owner), name)
    return found
